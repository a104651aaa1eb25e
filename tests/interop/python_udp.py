#!/usr/bin/env python3
"""The published Python client with its `secure` extra as an agent of our observer over UDP.

Usage: python_udp.py OBSERVER   (with the package `varta[secure]` importable)

In clear, under a shared key and under a master key: the agent beats, is stopped with SIGSTOP, must be
reported exactly once, goes on with SIGCONT, must be reported back. In clear and under a shared key it
then ends with an uncaught exception, and the last frame of its panic hook must be heard. Under a
shared key the observer is killed and started anew in between, and must hear the agent again at once and
nothing that was heard before. Prints a plain test summary; exit code 1 on the first thing that does not
hold.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from observer import PATIENCE_S, THRESHOLD_MS, Observer

SHARED_KEY = bytes(range(32))
MASTER_KEY = bytes(range(32, 64))
LAST_NONCE = str(2**64 - 1)
BEATS = "varta_observer_beats_total"
REPLAYS = "varta_secure_replay_refused_total"


def agent(kind, port):
    """Beats until SIGTERM ends it with an uncaught exception."""
    import varta.panic
    from varta import Status, Varta

    address = ("127.0.0.1", int(port))
    if kind == "clear":
        client = Varta.connect_udp(address)
        varta.panic.install_excepthook_udp(address)
    elif kind == "shared":
        client = Varta.connect_secure_udp(address, SHARED_KEY)
        varta.panic.install_excepthook_secure_udp(address, SHARED_KEY)
    else:
        client = Varta.connect_secure_udp_with_master(address, MASTER_KEY)

    def fail(*_):
        raise RuntimeError("told to fail")

    signal.signal(signal.SIGTERM, fail)
    parent = os.getppid()
    while os.getppid() == parent:
        client.beat(Status.DEGRADED, 4711)
        time.sleep(0.05)


class Tap:
    """Stands between agent and observer, passes datagrams on and keeps a copy of each."""

    def __init__(self, port):
        self.port = port
        self.inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.outer.bind(("127.0.0.1", 0))
        self.kept = []
        threading.Thread(target=self._pass_on, daemon=True).start()

    def address(self):
        return self.outer.getsockname()[1]

    def send(self, datagram):
        self.inner.sendto(datagram, ("127.0.0.1", self.port))

    def _pass_on(self):
        while True:
            datagram = self.outer.recv(2048)
            self.kept.append(datagram)
            self.send(datagram)


def start_agent(kind, port):
    return subprocess.Popen(
        [sys.executable, __file__, "--agent", kind, str(port)], stderr=subprocess.DEVNULL
    )


def port_of(observer):
    return int(observer.start["udp"].rsplit(":", 1)[1])


def last_frame_of(pid, events):
    """Waits for the row of a terminal frame."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with open(events, encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t") for line in file]
        for row in rows:
            if row[1:5] == ["beat", str(pid), LAST_NONCE, "critical"]:
                return row
        time.sleep(0.05)
    sys.exit(f"no last frame of pid {pid} in {events}")


def stop_and_go(observer, child, kind):
    join = observer.wait_for("join", child.pid)
    assert join["status"] == "degraded" and join["payload"] == 4711, join
    assert join["source"] == "127.0.0.1", join
    child.send_signal(signal.SIGSTOP)
    observer.wait_for("stall", child.pid)
    time.sleep(2 * THRESHOLD_MS / 1000)
    child.send_signal(signal.SIGCONT)
    back = observer.wait_for("return", child.pid)
    assert observer.count("stall", child.pid) == 1, observer.seen
    assert back["silence_ms"] >= 2 * THRESHOLD_MS, back
    print(f"{kind}: joins, is reported once while stopped, and back when it goes on")


def wait_for_counter(observer, series, value):
    """What was sent over the network may be read after the signal that asks for the counters."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        observer.process.send_signal(signal.SIGUSR1)
        line = observer.wait_for("notice")
        while "counters" not in line:
            line = observer.wait_for("notice")
        if line["counters"].get(series, 0) >= value:
            return
        assert time.monotonic() < deadline, (series, value, line["counters"])
        time.sleep(0.05)


def main(program):
    import varta

    print(f"published client: varta {varta.__version__}")
    passed = 0
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "varta.sock")
        events = os.path.join(directory, "events")
        files = {}
        for name, key in [("shared", SHARED_KEY), ("master", MASTER_KEY)]:
            files[name] = os.path.join(directory, name)
            with open(files[name], "w", encoding="ascii", opener=private) as file:
                file.write(key.hex() + "\n")
        children = []
        observer = None
        try:
            for kind, flags in [
                ("clear", ["--i-accept-plaintext-udp", "--udp-bind-addr=127.0.0.1"]),
                ("shared", ["--key-file", files["shared"]]),
                ("master", ["--master-key-file", files["master"]]),
            ]:
                flags = ["--export-file", events, *flags]
                observer = Observer(program, path, "--udp-port=0", *flags)
                tap = Tap(port_of(observer))
                child = start_agent(kind, tap.address())
                children.append(child)
                stop_and_go(observer, child, kind)
                passed += 1
                if kind != "clear":
                    time.sleep(THRESHOLD_MS / 1000)
                    capture = list(tap.kept)
                    wait_for_counter(observer, BEATS, len(capture))
                    observer.process.kill()
                    observer.process.wait()
                    observer = Observer(program, path, f"--udp-port={tap.port}", *flags)
                    observer.wait_for("join", child.pid)
                    for datagram in capture:
                        tap.send(datagram)
                    wait_for_counter(observer, REPLAYS, len(capture))
                    print(f"{kind}: heard again after kill -9, {len(capture)} replays refused")
                    passed += 1
                child.send_signal(signal.SIGTERM)
                child.wait()
                if kind != "master":
                    last_frame_of(child.pid, events)
                    print(f"{kind}: the last frame of its panic hook is heard")
                    passed += 1
                counters = observer.stop()
                bad = {k: v for k, v in counters.items() if "decode" in k or "decrypt" in k}
                assert not bad, bad
            print(f"{passed} passed, 0 failed")
        finally:
            for child in children:
                child.kill()
                child.wait()
            if observer:
                observer.process.kill()


def private(path, flags):
    return os.open(path, flags, 0o600)


if __name__ == "__main__":
    if sys.argv[1] == "--agent":
        agent(*sys.argv[2:4])
    else:
        main(sys.argv[1])
