"""Other proxies, each started as its users would start it, in one process where it lets one choose, without logs."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from benchmarks import installs
from benchmarks.bed import Bed
from benchmarks.load import Way
from local.paths import ROOT
from local.supervisor import free_port

CONNECTIONS_MAX: Final = 1000


async def haproxy(bed: Bed, target: str, *, buffer_bytes: int = 0, hops: int = 1) -> Way:
    """One haproxy in TCP mode, or several in a row, one thread each; `buffer_bytes` 0 keeps the stock buffers."""
    program = installs.system("haproxy", "haproxy")
    buffers = f"  tune.bufsize {buffer_bytes}\n" if buffer_bytes else ""
    parts = []
    at = target
    for _ in range(hops):
        port = free_port()
        config = (
            f"global\n  nbthread 1\n  maxconn {CONNECTIONS_MAX}\n{buffers}"
            f"defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"listen through\n  bind 127.0.0.1:{port}\n  server next {at}\n"
        )
        command = [program, "-db", "-f", bed.file(f"haproxy-{port}.cfg", config)]
        parts.append(await bed.listener(f"haproxy-{port}", command, port))
        at = f"127.0.0.1:{port}"
    return Way(at, parts=tuple(parts))


async def openssh(bed: Bed, target: str) -> Way:
    """`ssh -R`: a reverse tunnel of one encrypted connection, as many an administrator has one."""
    server, client = installs.system("sshd", "openssh-server"), installs.system("ssh", "openssh-client")
    folder, port, at = bed.folder.path, free_port(), free_port()
    keys = [str(folder / f"ssh-{role}") for role in ("host", "client")]
    for key in keys:
        program = installs.system("ssh-keygen", "openssh-client")
        made = await asyncio.create_subprocess_exec(program, "-q", "-t", "ed25519", "-N", "", "-f", key)
        await made.wait()
    if os.geteuid() == 0:  # sshd will not start without it, and only its service makes it
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    config = (
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys[0]}\nAuthorizedKeysFile {keys[1]}.pub\nStrictModes no\n"
        "UsePAM no\nPidFile none\nPermitRootLogin yes\nAllowTcpForwarding yes\nLogLevel ERROR\n"
    )
    command = [server, "-D", "-e", "-f", bed.file("sshd.conf", config)]
    listening = await bed.listener("openssh-server", command, port)
    command = [client, "-F", "none", "-N", "-i", keys[1], "-p", str(port), "-R", f"127.0.0.1:{at}:{target}"]
    for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"):
        command += ["-o", option]
    dialling = await bed.listener("openssh-client", [*command, "127.0.0.1"], at)
    return Way(f"127.0.0.1:{at}", parts=(listening, dialling))


async def squid(bed: Bed, target: str) -> Way:
    """Squid without cache and logs."""
    port = free_port()
    config = (
        f"http_port 127.0.0.1:{port}\nhttp_access allow all\ncache deny all\ncache_mem 8 MB\naccess_log none\n"
        "cache_store_log none\ncache_log /dev/null\npid_filename none\nnetdb_filename none\nvisible_hostname bench\n"
        f"max_filedescriptors 8192\nshutdown_lifetime 0 seconds\npinger_enable off\ncoredump_dir {bed.folder.path}\n"
    )
    command = [installs.system("squid", "squid"), "-N", "-f", bed.file("squid.conf", config)]
    part = await bed.listener("squid", command, port)
    return Way(f"127.0.0.1:{port}", "connect", target, parts=(part,))


async def tinyproxy(bed: Bed, target: str) -> Way:
    """Tinyproxy."""
    port = free_port()
    config = (
        f"Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients {CONNECTIONS_MAX}\nLogLevel Critical\n"
        "Allow 127.0.0.0/8\nDisableViaHeader Yes\n"
    )
    command = [installs.system("tinyproxy", "tinyproxy"), "-d", "-c", bed.file("tinyproxy.conf", config)]
    part = await bed.listener("tinyproxy", command, port)
    return Way(f"127.0.0.1:{port}", "connect", target, parts=(part,))


async def dante(bed: Bed, target: str) -> Way:
    """Dante's SOCKS5 server. It binds before it dials: its target resets, or its ports would be nobody's for a minute."""
    port = free_port()
    passing = "{ from: 127.0.0.0/8 to: 0.0.0.0/0 }"
    config = (
        f"logoutput: /dev/null\ninternal: 127.0.0.1 port = {port}\nexternal: 127.0.0.2\n"
        f"clientmethod: none\nsocksmethod: none\nclient pass {passing}\nsocks pass {passing}\n"
    )
    command = [installs.system("danted", "dante-server"), "-f", bed.file("danted.conf", config)]
    command += ["-p", str(bed.folder.path / "danted.pid")]
    part = await bed.listener("dante", command, port)
    return Way(f"127.0.0.1:{port}", "socks5", target, parts=(part,))


async def proxy_chain(bed: Bed, target: str) -> Way:
    """The npm package."""
    folder, port = await installs.proxy_chain(), free_port()
    script = str(ROOT / "benchmarks" / "proxy_chain.mjs")
    command = [installs.system("node", "nodejs"), script, str(folder), str(port)]
    part = await bed.listener("proxy-chain", command, port)
    return Way(f"127.0.0.1:{port}", "connect", target, parts=(part,))


async def proxy_py(bed: Bed, target: str) -> Way:
    """proxy.py with one worker."""
    folder, port = await installs.python_programs(), free_port()
    command = [str(folder / "proxy"), "--hostname", "127.0.0.1", "--port", str(port), "--log-level", "ERROR"]
    command += ["--num-workers", "1", "--num-acceptors", "1"]
    part = await bed.listener("proxy.py", command, port)
    return Way(f"127.0.0.1:{port}", "connect", target, parts=(part,))


async def pproxy(bed: Bed, target: str) -> Way:
    """pproxy."""
    folder, port = await installs.python_programs(), free_port()
    part = await bed.listener("pproxy", [str(folder / "pproxy"), "-l", f"http://127.0.0.1:{port}"], port)
    return Way(f"127.0.0.1:{port}", "connect", target, parts=(part,))
