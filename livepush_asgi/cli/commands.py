"""The commands and their options. Here the command line ends and the work begins."""

import webbrowser
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, Protocol, runtime_checkable

import typer
from rich.console import Console
from rich.markup import escape

from .. import LivePushMiddleware, __version__
from .demo.names import is_local
from .failure import MISTYPED, Failure, unreadable
from .follow import FileFollower, Follower, InputFollower

if TYPE_CHECKING:
    from .backend import Backend

out = Console(soft_wrap=True, highlight=False)
err = Console(soft_wrap=True, highlight=False, stderr=True)

app = typer.Typer(
    name="python -m livepush_asgi",
    help="Server push for Python ASGI applications, to be looked at.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Host = Annotated[str, typer.Option(help="The address to listen on. 0.0.0.0 lets other machines in.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes any free one.")]
OpenPage = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in this machine's browser.")]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="URL",
        envvar="LIVEPUSH_REDIS",
        help="Send everything through this Redis, as with several processes.",
    ),
]

Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", metavar="NAME", help="The namespace of the application: LivePush(..., namespace=...)."
    ),
]


class Address(NamedTuple):
    """Where to serve, and whether to show it."""

    host: str
    port: int
    open_page: bool


@runtime_checkable
class _UsageError(Protocol):
    """An error of the command-line library. Its class is public in some of its versions only."""

    exit_code: int

    def format_message(self) -> str: ...


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    try:
        status = app(list(arguments), standalone_mode=False)
    except Failure as failure:
        return _complain(str(failure), failure.status)
    except (KeyboardInterrupt, typer.Abort):
        return 0
    except Exception as error:
        if not isinstance(error, _UsageError):
            raise
        return _complain(error.format_message(), error.exit_code)
    return status if isinstance(status, int) else 0


def _complain(message: str, status: int) -> int:
    line = " ".join(message.split())
    err.print(f"[bold red]livepush:[/] {escape(line)}")
    return status


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"livepush_asgi {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Server push for Python ASGI applications, to be looked at.

    [bold]demo[/] serves a page with live charts, [bold]tail[/] follows log files on a page,
    [bold]publish[/] sends an event to the pages of an application, and [bold]doctor[/] says why
    events arrive late.
    """
    if context.invoked_subcommand is None:
        out.print(context.get_help())


@app.command()
def demo(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    redis: RedisUrl = None,
    namespace: Namespace = None,
    open_page: OpenPage = False,
) -> int:
    """Serve a page with this machine's live figures and a board for its visitors.

    It needs nothing but this process. Cut the stream and watch it come back.

    \b
    Examples:
      python -m livepush_asgi demo
      python -m livepush_asgi demo --open --port 0
      python -m livepush_asgi demo --redis redis://localhost:6379/0
    """
    from .demo import Demo

    address = Address(host, port, open_page)
    return _serve(lambda backend: Demo(backend).asgi, "The demo is served", address, redis, namespace)


@app.command()
def tail(
    names: Annotated[
        list[str], typer.Argument(metavar="FILE", help="The files to follow; - is standard input.")
    ],
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=5000, help="Begin with this many lines of each file.")
    ] = 50,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with the first line.")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    redis: RedisUrl = None,
    namespace: Namespace = None,
    open_page: OpenPage = False,
) -> int:
    """Follow log files on a page, as [bold]tail -F[/] does in a terminal.

    A file may be rotated or cut short, and lines that a page has missed are counted on it.
    Everyone who can open the page can read the lines.

    \b
    Examples:
      python -m livepush_asgi tail /var/log/syslog app.log
      python -m livepush_asgi tail -n 500 --port 9000 app.log
      journalctl -f | python -m livepush_asgi tail -
    """
    from .tail import Tail

    with ExitStack() as opened:
        followers = [_follower(name, None if from_start else lines, opened) for name in dict.fromkeys(names)]
        address = Address(host, port, open_page)
        return _serve(
            lambda backend: Tail(backend, followers).asgi, "The log page is served", address, redis, namespace
        )


@app.command()
def publish(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="The channel to publish on.")],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="The data of the event; - is standard input.")
    ] = "-",
    event: Annotated[str | None, typer.Option(metavar="NAME", help="The event name.")] = None,
    id: Annotated[str | None, typer.Option(metavar="ID", help="The event id.")] = None,
    redis: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Publish one event through a Redis, and tell how many listeners got it.

    A listener is a process that has this channel open for somebody.

    \b
    Examples:
      python -m livepush_asgi publish news "hello" --redis redis://localhost:6379/0
      date | python -m livepush_asgi publish clock - --event tick
    """
    from .publish import publish_once

    if redis is None:
        raise Failure("give the Redis of the application with --redis URL, or in LIVEPUSH_REDIS", MISTYPED)
    listeners = publish_once(channel, data, event, id, redis, namespace)
    out.print(f"{listeners} {'listener' if listeners == 1 else 'listeners'}")


@app.command()
def doctor(
    url: Annotated[str, typer.Argument(metavar="URL", help="The URL that EventSource opens.")],
    idle: Annotated[
        float, typer.Option(metavar="SECONDS", help="Try a silence of so long, but for heartbeats.")
    ] = 2.0,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="FIELD", help="Send a header field too.")
    ] = None,
    origin: Annotated[
        str | None, typer.Option(metavar="ORIGIN", help="Ask as a page of this origin does.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", "-k", help="Take any TLS certificate.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> int:
    """Find out what the way to an application does to its events.

    It connects as a browser does and asks for a timed series of events, if the
    application allows that: LivePush(..., probe=...). The exit status is 0 if all is
    well, 1 if a fault was found, and 2 if it could not be found out.

    \b
    Examples:
      python -m livepush_asgi doctor https://example.org/events/
      python -m livepush_asgi doctor --idle 75 https://example.org/events/
      python -m livepush_asgi doctor -H "Cookie: session=..." https://example.org/events/
    """
    from .doctor import Question, consult, header_of

    try:
        question = Question(
            url=url,
            idle=idle,
            headers=tuple(map(header_of, header or [])),
            origin=origin,
            insecure=insecure,
        )
    except ValueError as error:
        raise Failure(str(error), MISTYPED) from None
    try:
        report, status = consult(question, json=as_json)
    except KeyboardInterrupt:
        # Not 0, as elsewhere: that would say that all is well.
        raise Failure("it was stopped before it was done", MISTYPED) from None
    out.print(report, markup=False)
    return status


def _follower(name: str, last_lines: int | None, opened: ExitStack) -> Follower:
    try:
        follower = InputFollower() if name == "-" else FileFollower(Path(name), last_lines=last_lines)
    except OSError as error:
        raise unreadable(name, error) from None
    opened.callback(follower.close)
    return follower


def _serve(
    site: Callable[["Backend"], LivePushMiddleware],
    what: str,
    address: Address,
    redis: str | None,
    namespace: str | None,
) -> int:
    """Serve what `site` makes of a backend. What cannot be is found out before anything is served."""
    from .backend import backend_at, without_password
    from .demo.serve import bind, serve, url_of

    with bind(address.host, address.port) as listener:
        app = site(backend_at(redis, namespace))
        url = url_of(listener)
        via = f" through {without_password(redis)}" if redis else ""

        def announce() -> None:
            out.print(f"{what}{escape(via)}: [bold]{url}[/]   (Ctrl+C ends it)")
            if not is_local(listener.getsockname()[0]):
                out.print("Everyone who can reach this machine can open it.")
            if address.open_page:
                webbrowser.open(url)

        return serve(app, listener, err, announce)
