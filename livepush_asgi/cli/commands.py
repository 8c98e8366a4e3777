"""The commands and their options. Each command checks its arguments and calls the module behind it."""

import webbrowser
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..app.namespace import check_namespace
from .failure import MISTYPED, Failure, checking_arguments

out = Console(soft_wrap=True, highlight=False)
err = Console(soft_wrap=True, highlight=False, stderr=True)

app = typer.Typer(
    name="python -m livepush_asgi",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RedisUrl = Annotated[
    str | None,
    typer.Option("--redis", metavar="URL", envvar="LIVEPUSH_REDIS", help="The application's Redis."),
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", metavar="NAME", help="As in LivePush(..., namespace=...).")
]


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    try:
        status = app(list(arguments), standalone_mode=False)
    except Failure as failure:
        return _complain(str(failure), failure.status)
    except (KeyboardInterrupt, typer.Abort):
        return 0
    except Exception as error:
        # The class of a usage error is public in some versions of typer only.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        return _complain(format_message(), MISTYPED)
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
    """Try, feed and examine the event streams of livepush_asgi.

    [bold]demo[/] serves a page with live charts, [bold]publish[/] sends events to the pages of an
    application, and [bold]doctor[/] finds out why events arrive late.
    """
    if context.invoked_subcommand is None:
        out.print(context.get_help())


@app.command()
def demo(
    host: Annotated[str, typer.Option(help="The address; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes any free one.")] = 8000,
    redis: RedisUrl = None,
    namespace: Namespace = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open it in a browser.")] = False,
) -> int:
    """Serve a page with live figures of this machine and a board for its visitors.

    It needs no other process. Press "Cut the stream" and watch it come back.

    \b
    Examples:
      python -m livepush_asgi demo
      python -m livepush_asgi demo --open --port 0
      python -m livepush_asgi demo --redis redis://localhost:6379/0
    """
    from .demo import Demo
    from .demo.serve import bind, serve, url_of
    from .demo.web import is_local
    from .redis_url import check_server, without_password

    with checking_arguments():
        check_namespace(namespace)
    with bind(host, port) as listener:
        if redis is not None:
            check_server(redis)
        url, local = url_of(listener), is_local(listener.getsockname()[0])

        def announce() -> None:
            through = f" through {without_password(redis)}" if redis else ""
            out.print(f"The demo is served{escape(through)}: [bold]{url}[/]   (Ctrl+C ends it)")
            if not local:
                out.print("Everyone who can reach this machine can open it.")
            if open_page:
                webbrowser.open(url)

        return serve(Demo(redis, namespace, local=local), listener, err, announce)


@app.command()
def publish(
    context: typer.Context,
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="The channel to publish on.")],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="The data of one event; - takes each line of the input.")
    ] = "-",
    event: Annotated[str | None, typer.Option(metavar="NAME", help="The event name.")] = None,
    id: Annotated[str | None, typer.Option(metavar="ID", help="The event id, with DATA.")] = None,
    redis: RedisUrl = None,
    namespace: Namespace = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="LIVEPUSH_URL", help="The application's publisher, over HTTP."),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(metavar="TEXT", envvar="LIVEPUSH_SECRET", help="Sign with the secret of hmac_publish."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(metavar="TEXT", envvar="LIVEPUSH_TOKEN", help="Send this bearer token."),
    ] = None,
) -> None:
    """Publish to the pages of an application: one event, or one event for each line of input.

    Through its Redis, or over HTTP to what [bold]push.publisher[/] serves. With DATA and [bold]--redis[/] it
    tells how many listeners got the event: processes in which a stream has the channel. With [bold]-[/] it
    publishes until the input ends, and tells how many events there were.

    \b
    Examples:
      python -m livepush_asgi publish news "hello" --redis redis://localhost:6379/0
      python -m livepush_asgi publish news "hello" --url https://example.org/publish/
      tail -F app.log | python -m livepush_asgi publish logs - --event line
    """
    from .publish import Target, publish_event, publish_lines
    from .publish_http import HttpTarget

    if id is not None and data == "-":
        raise Failure("--id is for one event: give DATA too, or leave --id out", MISTYPED)
    # An option of the command line takes precedence over a variable of the environment.
    if url is not None and redis is not None and (typed := _typed(context, "url", "redis")):
        url, redis = (url if "url" in typed else None), (redis if "redis" in typed else None)
    if url is not None:
        if redis is not None or namespace is not None:
            other = "--namespace" if redis is None else "--redis or LIVEPUSH_REDIS"
            raise Failure(f"--url or LIVEPUSH_URL takes no {other}: leave one of them out", MISTYPED)
        http = HttpTarget(channel, url, secret, token)
        if data != "-":
            http.publish_event(data, event, id)
            out.print(_counted(1, "event"))
            return
        count, complete = http.publish_lines(event)
    elif redis is None:
        raise Failure(
            "give the Redis of the application with --redis URL, or in LIVEPUSH_REDIS; or its publisher over "
            "HTTP with --url URL, or in LIVEPUSH_URL",
            MISTYPED,
        )
    else:
        target = Target(channel, redis, namespace)
        if data != "-":
            out.print(_counted(publish_event(target, data, event, id), "listener"))
            return
        count, complete = publish_lines(target, event)
    out.print(_counted(count, "event") + ("" if complete else ", and stopped before the end of the input"))


@app.command()
def doctor(
    url: Annotated[str, typer.Argument(metavar="URL", help="The URL that EventSource opens.")],
    idle: Annotated[
        float, typer.Option(metavar="SECONDS", help="Test a silence of this length, heartbeats apart.")
    ] = 2.0,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="FIELD", help="Add a header field.")
    ] = None,
    origin: Annotated[
        str | None, typer.Option(metavar="ORIGIN", help="Send this Origin, as a page of that site does.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", "-k", help="Accept any TLS certificate.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> int:
    """Find out what proxies do to the events of an application.

    It connects as a browser does and asks for a timed series of events, if the application
    allows that: LivePush(..., probe=...). The exit status is 0 if the path is healthy, 1 if it
    has a fault, and 2 if that could not be found out.

    \b
    Examples:
      python -m livepush_asgi doctor https://example.org/events/
      python -m livepush_asgi doctor --idle 75 https://example.org/events/
      python -m livepush_asgi doctor -H "Cookie: session=..." https://example.org/events/
    """
    from .doctor import Question, examine_and_report, header_of

    with checking_arguments():
        headers = tuple(map(header_of, header or []))
        question = Question(url=url, idle=idle, headers=headers, origin=origin, insecure=insecure)
    try:
        report, status = examine_and_report(question, json=as_json)
    except KeyboardInterrupt:
        # Other commands return 0 here. The doctor's 0 says that the path is healthy.
        raise Failure("it was stopped before it was done", MISTYPED) from None
    out.print(report, markup=False)
    return status


def _typed(context: typer.Context, *options: str) -> set[str]:
    """Return which of these options are on the command line, and not from the environment."""
    sources = {option: context.get_parameter_source(option) for option in options}
    return {option for option, source in sources.items() if source and source.name == "COMMANDLINE"}


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
