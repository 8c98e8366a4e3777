from app import push


# start: faults
def why_not():
    """Return the reasons, for a page that only the operators see."""
    return [str(fault) for fault in push.faults]


# end: faults
