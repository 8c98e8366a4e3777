"""A real Prometheus: it takes the scrapes, evaluates each expression, and each alert fires when it should."""

import asyncio
import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from .programs import need
from .server_process import free_port
from .serving import Serving
from .test_dashboards import ALERTS, EXPRESSIONS, RULES, filled
from .test_metrics_workers import two_workers
from .valkey import ValkeyProcess
from .visit import Visit

# The samples, one a minute, at which an alert fires. In promtool's notation: start+increment x times.
FIRING = {
    "LivePushUnhealthy": {"livepush_healthy": "0x60"},
    "LivePushPublishErrors": {'livepush_publish_errors_total{error="unavailable"}': "0+1x60"},
    "LivePushRefused": {'livepush_streams_refused_total{cause="cap"}': "0+120x60"},
    "LivePushSlowClients": {
        'livepush_streams_ended_total{reason="slow"}': "0+20x60",
        'livepush_streams_ended_total{reason="disconnect"}': "0+100x60",
    },
    "LivePushGaps": {'livepush_gaps_total{reason="overflow"}': "0+60x60"},
    "LivePushReconnectStorm": {
        'livepush_stream_duration_seconds_bucket{reason="disconnect",le="10.0"}': "0+100x60",
        'livepush_stream_duration_seconds_count{reason="disconnect"}': "0+120x60",
    },
    "LivePushSlowOpen": {
        'livepush_open_duration_seconds_bucket{le="1.0"}': "0+1x60",
        'livepush_open_duration_seconds_bucket{le="5.0"}': "0+9x60",
        'livepush_open_duration_seconds_bucket{le="+Inf"}': "0+9x60",
    },
    "LivePushDeliveryLag": {
        'livepush_delivery_lag_seconds_bucket{le="1.0"}': "0+1x60",
        'livepush_delivery_lag_seconds_bucket{le="5.0"}': "0+9x60",
        'livepush_delivery_lag_seconds_bucket{le="+Inf"}': "0+9x60",
    },
    "LivePushBrokerFlaps": {"livepush_broker_reconnects_total": "0+1x60"},
}
CALM = {
    "livepush_healthy": "1x60",
    'livepush_publish_errors_total{error="unavailable"}': "7x60",
    'livepush_publish_errors_total{error="conflict"}': "0+100x60",
    'livepush_streams_refused_total{cause="cap"}': "0+10x60",
    'livepush_streams_refused_total{cause="drain"}': "0+500x60",
    'livepush_streams_ended_total{reason="slow"}': "0+5x60",
    'livepush_streams_ended_total{reason="disconnect"}': "0+100x60",
    'livepush_gaps_total{reason="unknown"}': "0+100x60",
    'livepush_stream_duration_seconds_bucket{reason="disconnect",le="10.0"}': "0+20x60",
    'livepush_stream_duration_seconds_count{reason="disconnect"}': "0+120x60",
    'livepush_open_duration_seconds_bucket{le="1.0"}': "0+9x60",
    'livepush_open_duration_seconds_bucket{le="+Inf"}': "0+9x60",
    "livepush_broker_reconnects_total": "0 1 1 1x57",
}


def with_target(series: str) -> str:
    name, _, labels = series.partition("{")
    return f'{name}{{job="app",instance="one",{labels.rstrip("}")}}}'


def rule_test(series: dict[str, str], firing: str | None) -> dict[str, Any]:
    expected: list[dict[str, Any]] = [
        # The labels and texts of an alert are those of its rule, so only its number is compared.
        {
            "expr": f'count(ALERTS{{alertstate="firing",alertname="{rule["alert"]}"}}) or vector(0)',
            "eval_time": "45m",
        }
        | {"exp_samples": [{"labels": "{}", "value": int(rule["alert"] == firing)}]}
        for rule in RULES
    ]
    return {
        "interval": "1m",
        "input_series": [{"series": with_target(name), "values": values} for name, values in series.items()],
        "promql_expr_test": expected,
    }


def test_each_alert_fires_and_none_does_in_calm(tmp_path: Path) -> None:
    promtool = need("promtool")
    assert set(FIRING) == {rule["alert"] for rule in RULES}
    tests = [rule_test(series, alert) for alert, series in FIRING.items()] + [rule_test(CALM, None)]
    path = tmp_path / "tests.yml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests})
    )
    for command in (("check", "rules", str(ALERTS)), ("test", "rules", str(path))):
        done = subprocess.run([promtool, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@asynccontextmanager
async def prometheus(server: Serving, directory: Path) -> AsyncIterator[str]:
    """Run a Prometheus that scrapes the server twice a second, and yield its address."""
    binary, port = need("prometheus"), free_port()
    targets = [{"targets": [f"127.0.0.1:{server.port}"]}]
    jobs = [
        {"job_name": name, "metrics_path": path, "static_configs": targets}
        for name, path in (("app", "/metrics"), ("text", "/text"))
    ]
    interval = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump({"global": interval, "scrape_configs": jobs, "rule_files": [str(ALERTS)]}))
    options = [f"--config.file={path}", f"--storage.tsdb.path={directory / 'data'}"]
    process = await asyncio.create_subprocess_exec(
        binary, *options, f"--web.listen-address=127.0.0.1:{port}", stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        process.kill()
        await process.wait()


async def ask(address: str, path: str, **query: str) -> Any:
    def get() -> Any:
        with urllib.request.urlopen(f"{address}/{path}?{urllib.parse.urlencode(query)}") as answer:
            return json.load(answer)["data"]

    return await asyncio.to_thread(get)


async def results_of(address: str, expression: str) -> list[Any]:
    """Return the result of an expression, once there is one."""
    async with asyncio.timeout(20):
        while True:
            try:
                if found := (await ask(address, "query", query=expression))["result"]:
                    return list(found)
            except OSError:
                # It has not started yet.
                pass
            await asyncio.sleep(0.1)


@pytest.mark.real_time
@pytest.mark.slow
async def test_a_real_prometheus_evaluates_each_expression(valkey: ValkeyProcess, tmp_path: Path) -> None:
    async with two_workers(valkey, tmp_path) as server, Visit(server.port) as visit:
        streams = [await visit.request(f"/events?key={number}") for number in range(8)]
        for stream in streams:
            await stream.next_event("livepush.open")
        async with prometheus(server, tmp_path) as address:
            await results_of(address, 'livepush_streams{job="app"} == 8')
            # The text of one worker, which it parses as OpenMetrics, strictly.
            await results_of(address, 'livepush_stream_duration_seconds_bucket{job="text"}')
            await visit.publish("hello", times=20)
            for stream in streams[:4]:
                stream.close()
            # A rate needs two scrapes, and a lag to speak of is measured a second later.
            await results_of(address, 'rate(livepush_streams_ended_total{reason="disconnect"}[5s]) > 0')
            await results_of(address, "rate(livepush_delivery_lag_seconds_count[5s]) > 0")
            for name, expression in EXPRESSIONS.items():
                if name in FIRING:
                    # An alert that does not fire has no result; each operand of its comparison has one.
                    for part in re.split(r" (?:==|>|and) ", filled(expression).replace("\n", " ")):
                        operand = re.sub(r"^\s*[\d.]+ \* ", "", part)
                        assert await results_of(address, operand)
                else:
                    assert await results_of(address, filled(expression)), name
            (group,) = (await ask(address, "rules"))["groups"]
            assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in RULES]
            assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
