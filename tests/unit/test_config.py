"""Settings: precedence, bounds, and contradictions told with what to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from metastore.addresses import split_address
from metastore.config import NodeConfig, RouterConfig, load_config
from metastore.errors import ConfigError

BASE = ["--cell", "c1", "--node", "n1", "--data-dir", "/d", "--rpc", "h:1", "--http", "h:2"]


def node(*argv: str) -> NodeConfig:
    return load_config(NodeConfig, [*BASE, *argv], "METASTORE_NODE", "node")


def test_flag_over_environment_over_file_over_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node]\nheartbeat_ms = 100\ngrant_ms = 500\ntick_ms = 7\netcd = ["a:1", "b:2"]\n')
    monkeypatch.setenv("METASTORE_NODE_HEARTBEAT_MS", "110")
    monkeypatch.setenv("METASTORE_NODE_GRANT_MS", "510")
    made = node("--config", str(file), "--heartbeat-ms=120")
    assert (made.heartbeat_ms, made.grant_ms, made.tick_ms, made.settle_ms) == (120, 510, 7, 50)
    assert made.etcd == ["a:1", "b:2"]
    assert node("--etcd", "x:1, y:2").etcd == ["x:1", "y:2"]
    assert node("--claim_without_etcd", "False").claim_without_etcd is False


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--grant-ms", "400"], "grant_ms = 400 is below 3 heartbeats of 150 ms.*raise grant_ms to 450"),
        (["--suspect-after-ms", "300"], "suspect_after_ms = 300.*raise it to 450"),
        (["--lease-ttl-s", "0.5"], "lease_ttl_s = 0.5 is below 1"),
        (["--suspect-after-ms", "20000"], "lease_ttl_s = 5.0 is shorter.*raise lease_ttl_s"),
        (["--tick-ms", "200"], "tick_ms = 200 is above heartbeat_ms = 150"),
        (["--log-retention-mib", "40"], "log_retention_mib = 40.*raise it to 64"),
        (["--heartbeat-ms", "5"], "heartbeat_ms = 5 is below 10"),
        (["--heartbeat-ms", "1.5"], "heartbeat_ms = '1.5' is not a whole number"),
        (["--lease-ttl-s", "soon"], "lease_ttl_s = 'soon' is not a number"),
        (["--claim-without-etcd", "maybe"], "claim_without_etcd = 'maybe' is not true or false"),
        (
            ["--heartbeat-sm", "5"],
            "unknown setting 'heartbeat_sm' on the command line; did you mean heartbeat_ms",
        ),
        (["--heartbeat-ms"], "--heartbeat_ms needs a value"),
        (["stray"], "unexpected argument 'stray'"),
        (["--rpc", "nowhere"], "rpc = 'nowhere' is not host:port"),
        (["--etcd", "a:0"], "etcd = 'a:0' is not host:port"),
        (["--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (["--rpc", ""], "rpc = '' is empty: give host:port"),
        (["--rpc", "http://h:7"], "rpc = 'http://h:7' is a URL .http.; give host:port only: h:7"),
        (["--etcd", "https://e:2379/"], "is a URL .https.; give host:port only: e:2379"),
        (["--rpc", "h:7/x"], "has a path; give host:port only: h:7"),
        (["--rpc", "h 7:1"], "has blanks"),
        (["--rpc", "::1:7400"], "is IPv6 without brackets"),
        (["--rpc", "fe80::1:7400"], "is IPv6 without brackets"),
        (["--rpc", "2001:db8::a"], "is IPv6 without brackets"),
        (["--rpc", "[h]:7"], "brackets are for IPv6"),
        (["--rpc", ":7"], "the host is missing"),
        (["--rpc", "h:70000"], "'70000', is not a number from 1 to 65535"),
        (["--rpc", "h:"], "is not a number"),
        (["--rpc", "a,b:7"], "give a name or an IP address"),
        (["--rpc", "0.0.0.0:7400"], "to which no process can connect.*rpc_listen = 0.0.0.0:7400"),
        (["--http", "[::]:7401"], "to which no process can connect.*http_listen = "),
        (["--rpc-listen", "nowhere"], "rpc_listen = 'nowhere' is not host:port"),
        (["--etcd", ""], "etcd is empty"),
        (["--etcd", "0.0.0.0:2379"], "no process can connect"),
        (["--node", "a/b"], "node = 'a/b' is not a valid name"),
        (["--node", ""], "node = '' is not a valid name"),
        (["--cell", "c 1"], "cell = 'c 1' is not a valid name"),
        (["--cluster", "-x"], "cluster = '-x' is not a valid name"),
        (["--zone", "a\nb"], "zone = 'a.*printable"),
    ],
)
def test_what_is_wrong_is_told(argv: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        node(*argv)


def test_missing_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"missing settings: (--(cell|data-dir|http|rpc)(, )?){4}$"):
        load_config(NodeConfig, ["--node", "n"], "METASTORE_NODE", "node")


def test_unknown_names_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[node]\ngrant = 5\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'grant' in \[node\].*did you mean grant_ms"):
        node("--config", str(file))
    file.write_text("[node\n")
    with pytest.raises(ConfigError, match="configuration file"):
        node("--config", str(file))


def test_one_cell_may_not_use_up_a_router() -> None:
    with pytest.raises(ConfigError, match="max_inflight_per_cell = 99 is above max_inflight = 9"):
        load_config(
            RouterConfig,
            ["--max-inflight", "9", "--max-inflight-per-cell", "99"],
            "METASTORE_ROUTER",
            "router",
        )


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        node("--help")
    text = capsys.readouterr().out
    assert "`METASTORE_NODE_GRANT_MS`" in text
    assert "(R8)" in text


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("10.0.0.1:7400", "10.0.0.1", 7400),
        ("[::1]:7", "::1", 7),
        ("[fe80::1%eth0]:7", "fe80::1%eth0", 7),
        ("n-1.x_y:7", "n-1.x_y", 7),
    ],
)
def test_addresses_that_are_good(address: str, host: str, port: int) -> None:
    made = node("--rpc", address, "--rpc-listen", "0.0.0.0:7400", "--http-listen", "[::]:7401")
    assert split_address(made.rpc) == (host, port)
    assert split_address(made.http_listen) == ("::", 7401)


@pytest.mark.parametrize("http", ["0.0.0.0:8080", "[::]:8080", "h:1"])
def test_a_router_may_listen_on_all_interfaces(http: str) -> None:
    made = load_config(RouterConfig, ["--http", http], "METASTORE_ROUTER", "router")
    assert made.http == http
    with pytest.raises(ConfigError, match="no process can connect"):
        load_config(RouterConfig, ["--nodes", http.replace("h:1", "[::]:1")], "METASTORE_ROUTER", "router")
