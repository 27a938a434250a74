"""Amazon's own DynamoDB for one machine, fetched once by Maven for what `local/dynamodb/pom.xml` says. It needs Java 17."""

from __future__ import annotations

import fcntl
import subprocess
from typing import Final

from local.paths import ROOT, STATE
from local.sdks import BUILD_TIMEOUT_S, BuildFailed, tool

POM: Final = ROOT / "local" / "dynamodb" / "pom.xml"
JARS: Final = STATE / "dynamodb"
_MAIN: Final = "com.amazonaws.services.dynamodbv2.local.main.ServerRunner"
_COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


def command(port: int) -> list[str]:
    """A server in memory on a loopback port, fetched before if need be. Raises ToolMissing and BuildFailed."""
    java, maven = tool("java"), tool("mvn")
    JARS.mkdir(parents=True, exist_ok=True)
    with (JARS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = JARS / "stamp"
        if not kept.exists() or kept.read_text() != POM.read_text():
            asked = [maven, "-q", "-B", "-f", str(POM), _COPY, f"-DoutputDirectory={JARS}"]
            done = subprocess.run(asked, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
            if done.returncode != 0:
                raise BuildFailed((done.stderr or done.stdout)[-500:])
            kept.write_text(POM.read_text())
    options = ["-inMemory", "-disableTelemetry", "-port", str(port)]
    return [java, "-XX:+UseSerialGC", "-Xmx256m", "-cp", f"{JARS}/*", _MAIN, *options]
