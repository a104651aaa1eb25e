"""Our observer as a process, for the programs of this directory."""

import json
import queue
import signal
import subprocess
import sys
import threading
import time

THRESHOLD_MS = 500
PATIENCE_S = 20


class Observer:
    """A running observer; its log lines are read as they come."""

    def __init__(self, program, path, *flags):
        self.process = subprocess.Popen(
            [
                program,
                "--socket",
                path,
                f"--threshold-ms={THRESHOLD_MS}",
                "--log-format=json",
                *flags,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = queue.Queue()
        self.seen = []
        threading.Thread(target=self._read, daemon=True).start()
        self.start = self.wait_for("start")

    def _read(self):
        for line in self.process.stderr:
            self.lines.put(json.loads(line))

    def wait_for(self, event, pid=None):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self.lines.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                sys.exit(f"no {event} line for pid {pid}; seen: {json.dumps(self.seen, indent=1)}")
            self.seen.append(line)
            if line["event"] == event and pid in (None, line.get("pid")):
                return line

    def http_address(self):
        """Where it answers questions; with `--http HOST:0` only."""
        return self.process.stdout.readline().strip()

    def count(self, event, pid):
        return sum(line["event"] == event and line.get("pid") == pid for line in self.seen)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        stop = self.wait_for("stop")
        assert self.process.wait() == 0, "the observer did not stop cleanly"
        return stop["counters"]
