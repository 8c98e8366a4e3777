"""The hash tag of a key: what a Redis Cluster decides by where the key is."""

_ESCAPES = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


def tag_of(name: str) -> str:
    """Return the hash tag for the keys of a channel or slot key: its name, with `%`, `{` and `}` escaped.

    No two names have the same tag. The server hashes the text between the first brace and the next one; an
    empty text would be no tag.
    """
    return name.translate(_ESCAPES) or "%"
