#!/usr/bin/env python3
"""The published Python client as an agent of our observer.

Usage: python_client.py OBSERVER   (with the package `varta` importable)

The script starts the observer on a private socket and itself again as an agent: the agent beats, is
stopped with SIGSTOP, must be reported exactly once, goes on with SIGCONT, must be reported back,
and leaves politely. Then the observer is killed and started anew, and the client, told to reconnect,
must be heard again. Last, the Python of the README must be heard. Prints a plain test summary; exit
code 1 on the first thing that does not hold.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time

from observer import THRESHOLD_MS, Observer

README = os.path.join(os.path.dirname(__file__), "..", "..", "README.md")
README_SOCKET = "/run/varta/varta.sock"


def agent(path):
    from varta import Status, Varta

    client = Varta.connect(path)
    client.set_reconnect_after(1)
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while os.getppid() == parent:
        client.beat(Status.DEGRADED, 4711)
        time.sleep(0.05)


def readme_program(path):
    """The first Python block of the README, for our own socket."""
    with open(README, encoding="utf-8") as readme:
        block = re.search(r"```python\n(.*?)```", readme.read(), re.DOTALL).group(1)
    assert README_SOCKET in block, block
    return block.replace(README_SOCKET, path)


def main(program):
    import varta

    print(f"published client: varta {varta.__version__}")
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "varta.sock")
        observer = Observer(program, path)
        child = subprocess.Popen([sys.executable, __file__, "--agent", path])
        try:
            join = observer.wait_for("join", child.pid)
            assert join["status"] == "degraded" and join["payload"] == 4711, join
            print("joins with its status and payload")

            child.send_signal(signal.SIGSTOP)
            stall = observer.wait_for("stall", child.pid)
            time.sleep(4 * THRESHOLD_MS / 1000)
            child.send_signal(signal.SIGCONT)
            back = observer.wait_for("return", child.pid)
            assert observer.count("stall", child.pid) == 1, observer.seen
            assert back["silence_ms"] >= 4 * THRESHOLD_MS, back
            print(f"stopped: reported once, {stall['lateness_ms']:.3f} ms after its deadline")
            print(f"continued: reported back after {back['silence_ms']:.0f} ms")

            observer.process.kill()
            observer.process.wait()
            observer = Observer(program, path)
            observer.wait_for("join", child.pid)
            print("heard again after the observer was killed and started anew")

            child.send_signal(signal.SIGTERM)
            child.wait()
            left = observer.wait_for("exit", child.pid)
            assert left["how"] in ("left", "unknown"), left
            print(f"leaves: {left['how']}")

            readme = subprocess.Popen([sys.executable, "-c", readme_program(path)])
            observer.wait_for("join", readme.pid)
            readme.kill()
            readme.wait()
            died = observer.wait_for("exit", readme.pid)
            assert died["signal"] == signal.SIGKILL, died
            print("the README's Python is heard, and its end too")

            counters = observer.stop()
            refused = {k: v for k, v in counters.items() if "decode" in k or "auth" in k}
            assert not refused, refused
            print("6 passed, 0 failed")
        finally:
            child.kill()
            child.wait()
            observer.process.kill()


if __name__ == "__main__":
    if sys.argv[1] == "--agent":
        agent(sys.argv[2])
    else:
        main(sys.argv[1])
