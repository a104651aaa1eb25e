#!/usr/bin/env python3
"""A real Prometheus scrapes our observer in both formats.

Usage: prometheus.py OBSERVER [SECONDS]   (with `prometheus` and `promtool` to be found; 60 s unless given)

Four agents beat: one well, one degraded, one that is stopped with SIGSTOP and so must be told as stalled,
and one with a name that would break a page without escapes, which is killed at the end and must be gone
from the next scrape. Prometheus scrapes every second, once as it likes (OpenMetrics) and once through a
proxy that asks for nothing in particular (the classic text). What it holds then must be, under both jobs,
every family that `OBSERVER --list-metrics` names, with as many series as that says. `promtool check metrics`
must find nothing to remark, and `promtool check rules` must take the alerts of docs/recovery.md. Prints a plain test summary; exit code 1 on the first thing that does not hold.
"""

import http.server
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

from observer import PATIENCE_S, Observer

SECONDS_DEFAULT = 60
BEATS_PER_SECOND = 10
# Every second but for a few, on a machine that has something else to do.
SCRAPES_MIN = 0.8
RECOVERY_PAGE = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "recovery.md")
ODD_NAME = 'o"dd\\na}me,{'
OPEN_METRICS = "application/openmetrics-text"
TEXT = "text/plain"
JOBS = ("as_it_likes", "classic_text")

CONFIGURATION = """
global:
  scrape_interval: 1s
  scrape_timeout: 1s
scrape_configs:
  - job_name: as_it_likes
    static_configs: [{{targets: ["{observer}"]}}]
  - job_name: classic_text
    static_configs: [{{targets: ["{proxy}"]}}]
"""


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def agent(path, name, status):
    """Beats until its parent is gone."""
    with open("/proc/self/comm", "w") as comm:
        comm.write(name)
    beats = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    beats.connect(path)
    parent, nonce = os.getppid(), 0
    while os.getppid() == parent:
        nonce += 1
        frame = struct.pack(
            "<2sBBIQQI", b"VA", 2, int(status), os.getpid(), time.monotonic_ns(), nonce, 0
        )
        beats.send(frame + struct.pack("<I", crc32c(frame)))
        time.sleep(1 / BEATS_PER_SECOND)


class Agents:
    """Processes that beat, by name."""

    def __init__(self, path):
        self.path, self.processes = path, {}

    def start(self, name, status=0):
        command = [sys.executable, __file__, "agent", self.path, name, str(status)]
        self.processes[name] = subprocess.Popen(command)

    def pid(self, name):
        return self.processes[name].pid

    def kill(self, name):
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def kill_all(self):
        for name in list(self.processes):
            self.kill(name)


def fetch(url, accept=None):
    """Content type and text."""
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def classic_proxy(url):
    """Hands on what is answered to somebody who does not say what they like; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            kind, text = fetch(url)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_port}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """A running Prometheus that scrapes the observer under both jobs."""

    def __init__(self, directory, observer, proxy):
        configuration = os.path.join(directory, "prometheus.yml")
        with open(configuration, "w") as file:
            file.write(CONFIGURATION.format(observer=observer, proxy=proxy))
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        self.log = open(os.path.join(directory, "prometheus.log"), "w+")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={address}",
            ],
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        wait_until("Prometheus is ready", self.is_ready)

    def is_ready(self):
        try:
            return fetch(f"{self.url}/-/ready")
        except (OSError, urllib.error.URLError):
            return None

    def query(self, query):
        """The samples of an instant query: pairs of labels and value."""
        _, text = fetch(f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        return [(row["metric"], float(row["value"][1])) for row in json.loads(text)["data"]["result"]]

    def value(self, query):
        samples = self.query(query)
        check(len(samples) == 1, f"{query} has one value", samples)
        return samples[0][1]

    def knows(self, job, family):
        """Whether a family was described under this name; those of counters differ between the formats."""
        parameters = {"match_target": f'{{job="{job}"}}', "metric": family}
        _, text = fetch(f"{self.url}/api/v1/targets/metadata?" + urllib.parse.urlencode(parameters))
        return bool(json.loads(text)["data"])

    def errors(self):
        _, text = fetch(f"{self.url}/api/v1/targets")
        return [target["lastError"] for target in json.loads(text)["data"]["activeTargets"]]

    def refused_samples(self):
        """What Prometheus itself counts of samples it did not take."""
        _, text = fetch(f"{self.url}/metrics")
        refused = [line for line in text.splitlines() if line.startswith("prometheus_target_scrapes_sample_")]
        return [line for line in refused if float(line.rsplit(" ", 1)[1]) > 0]

    def stop(self):
        self.process.terminate()
        self.process.wait()


def wait_until(what, holds):
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        check(time.monotonic() < deadline, f"{what} within {PATIENCE_S} s")
        time.sleep(0.1)


def check(holds, what, seen=None):
    if not holds:
        sys.exit(f"FAILED: {what}; seen: {seen}")


def families(program):
    """Name, type, number of series of each family, and whether that is for each agent, or each name."""
    page = subprocess.run([program, "--list-metrics"], capture_output=True, text=True, check=True)
    rows = [line.strip("| \n").split(" | ") for line in page.stdout.splitlines() if line.startswith("| `")]
    return [
        (row[0].strip("`"), row[1], int(row[3].split(" ")[0]), " per " in row[3]) for row in rows
    ]


def check_families(prometheus, job, families, agents):
    for name, kind, series, is_per_agent in families:
        if kind == "histogram":
            # Sum and count are series of their own.
            name, series = f"{name}_bucket", series - 2
        held = prometheus.query(f'{name}{{job="{job}"}}')
        # Each has a name of its own.
        expected = agents * series if is_per_agent else series
        check(len(held) == expected, f"{job} holds {expected} series of {name}", held)


def check_agents(prometheus, job, agents):
    for name, status in (("well", 0), ("troubled", 1), ("stopped", 3), (ODD_NAME, 0)):
        labels = f'{{job="{job}",pid="{agents.pid(name)}"}}'
        samples = prometheus.query(f"varta_status{labels}")
        check([value for _, value in samples] == [status], f"{job}: {name} has status {status}", samples)
        check(samples[0][0]["name"] == name, f"{job}: {name} is called so", samples)
        rate = prometheus.value(f"rate(varta_beats_total{labels}[5s])")
        expected = 0 if name == "stopped" else BEATS_PER_SECOND
        close = abs(rate - expected) <= BEATS_PER_SECOND / 2
        check(close, f"{job}: {name} beats {expected} times per second", rate)
    lag = prometheus.value(f'time() - varta_watch_last_poll_loop_timestamp_seconds{{job="{job}"}}')
    check(abs(lag) < 5, f"{job}: the last turn of the beat path is recent", lag)
    stalled = prometheus.value(f'varta_agents{{job="{job}",state="stalled"}}')
    check(stalled == 1, f"{job}: one agent has stalled", stalled)


def check_scrapes(prometheus, job, seconds):
    window = f'up{{job="{job}"}}[{seconds}s]'
    scrapes = prometheus.value(f"count_over_time({window})")
    check(scrapes >= SCRAPES_MIN * seconds, f"{job}: about {seconds} scrapes", scrapes)
    check(prometheus.value(f"min_over_time({window})") == 1, f"{job}: each scrape was answered")
    return int(scrapes)


def check_formats(url):
    kind, text = fetch(url)
    check(kind.startswith(TEXT), "classic text unless asked for something else", kind)
    lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    remarks = lint.stdout + lint.stderr
    check(lint.returncode == 0 and not remarks, "promtool has nothing to remark", remarks)
    kind, text = fetch(url, f"{OPEN_METRICS};version=1.0.0,{TEXT};version=0.0.4;q=0.5")
    check(kind.startswith(OPEN_METRICS), "OpenMetrics when asked for", kind)
    check(text.endswith("# EOF\n"), "OpenMetrics has an end", text[-80:])


def check_alerts(listed, directory):
    """The rules in the documentation are rules, about metrics that there are."""
    with open(RECOVERY_PAGE, encoding="utf-8") as page:
        rules = page.read().split("```yaml\n")[1].split("```")[0]
    path = os.path.join(directory, "alerts.yml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(rules)
    lint = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    check(lint.returncode == 0, "promtool takes the alerts", lint.stdout + lint.stderr)
    named = set(re.findall(r"\bvarta_\w+", rules))
    unknown = named - {name for name, *_ in listed}
    check(named and not unknown, "the alerts are about metrics that there are", unknown)


def run(program, seconds, directory):
    path = os.path.join(directory, "varta.sock")
    observer = Observer(program, path, "--http", "127.0.0.1:0")
    address = observer.http_address()
    url = f"http://{address}/metrics"
    agents = Agents(path)
    prometheus = None
    try:
        for name, status in (("well", 0), ("troubled", 1), ("stopped", 0), (ODD_NAME, 0)):
            agents.start(name, status)
            observer.wait_for("join", agents.pid(name))
        os.kill(agents.pid("stopped"), signal.SIGSTOP)
        observer.wait_for("stall", agents.pid("stopped"))
        prometheus = Prometheus(directory, address, classic_proxy(url))
        for job in JOBS:
            wait_until(f"{job} is scraped", lambda: prometheus.query(f'up{{job="{job}"}}'))
        time.sleep(seconds)

        check(not any(prometheus.errors()), "no scrape failed", prometheus.errors())
        for job, family in (("as_it_likes", "varta_io_errors"), ("classic_text", "varta_io_errors_total")):
            check(prometheus.knows(job, family), f"{job} was read in its own format")
        listed = families(program)
        for job in JOBS:
            scrapes = check_scrapes(prometheus, job, seconds)
            check_families(prometheus, job, listed, agents=4)
            check_agents(prometheus, job, agents)
            print(f"ok: {job}: {scrapes} scrapes, {len(listed)} families, 4 agents")

        gone = f'varta_status{{pid="{agents.pid(ODD_NAME)}"}}'
        agents.kill(ODD_NAME)
        wait_until("the series of a dead agent are gone", lambda: not prometheus.query(gone))
        print("ok: the series of a dead agent are gone")
        check(not prometheus.refused_samples(), "every sample was taken", prometheus.refused_samples())
        check_alerts(listed, directory)
        print("ok: the alerts of the documentation")
        check_formats(url)
        print("ok: both formats, promtool has nothing to remark")
    finally:
        agents.kill_all()
        if prometheus:
            prometheus.stop()
        observer.stop()


def main(arguments):
    if not arguments:
        sys.exit(__doc__)
    seconds = int(arguments[1]) if len(arguments) > 1 else SECONDS_DEFAULT
    with tempfile.TemporaryDirectory() as directory:
        run(arguments[0], seconds, directory)


if __name__ == "__main__":
    if sys.argv[1:2] == ["agent"]:
        agent(*sys.argv[2:])
    else:
        main(sys.argv[1:])
