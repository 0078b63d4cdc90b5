"""Where the memory of this process could end up besides RAM: in swap, a core file, another process.

Images are in it while they are worked on, so none of these may be possible. Linux only: elsewhere
nothing of it can be asked for.
"""

import ctypes
import resource
import sys
from pathlib import Path
from typing import Literal

from jobs.settings import Settings

_PR_GET_DUMPABLE = 3
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_IPC_LOCK = 14

Swap = Literal["off", "limited", "locked", "allowed", "possible", "unknown"]


class Memory:
    """Looks at this process.

    Attributes:
        swap: ``off`` (there is none on a disk), ``limited`` (the cgroup may not swap), ``locked``
            (all pages stay in RAM), ``allowed`` (it may happen, the operator said so),
            ``possible``, or ``unknown`` before the first look and on other systems.
    """

    def __init__(
        self, settings: Settings, proc: Path = Path("/proc"), sys_: Path = Path("/sys")
    ) -> None:
        self._allow_swap = settings.allow_swap
        self._proc = proc
        self._sys = sys_
        self.swap: Swap = "unknown"

    def findings(self) -> list[str]:
        """What is unsafe, each with what to change; empty when all is well."""
        if sys.platform != "linux":
            return []
        self.swap = self._swap()
        found = []
        if self.swap == "possible":
            found.append(
                "Swap is on and nothing keeps this process out of it, so images could reach a "
                "disk. Start it with `systemd-run --user --scope -p MemorySwapMax=0 …`, in a "
                "container with memswap_limit equal to mem_limit, or with an unlimited memlock "
                "limit (LimitMEMLOCK=infinity), or switch swap off (`swapoff -a`). "
                "MAYFLY_ALLOW_SWAP=true accepts it."
            )
        if ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
            found.append(
                "This process can be dumped: others could read its memory. Start it through "
                "`mayfly`, where nothing (a seccomp profile, for example) forbids "
                "PR_SET_DUMPABLE."
            )
        if resource.getrlimit(resource.RLIMIT_CORE)[0] != 0:
            found.append("This process may write core files. Start it with `ulimit -c 0`.")
        return found

    def _swap(self) -> Swap:
        if not self._reaches_disk():
            return "off"
        if self._limited():
            return "limited"
        if self.swap == "locked" or self._lock():
            return "locked"
        return "allowed" if self._allow_swap else "possible"

    def _reaches_disk(self) -> bool:
        """Whether there is swap that is not in RAM itself, as zram without a device behind is."""
        lines = _read(self._proc / "swaps").splitlines()[1:]
        return not all(self._in_ram(Path(line.split()[0])) for line in lines if line.strip())

    def _in_ram(self, device: Path) -> bool:
        behind = self._sys / "block" / device.name / "backing_dev"
        return device.name.startswith("zram") and _read(behind).strip() in ("", "none")

    def _limited(self) -> bool:
        """Whether the cgroup, or one above it, may not swap at all.

        Only cgroup v2 can say so. Of v1, the kernel may swap out below ``memsw.limit_in_bytes``.
        """
        lines = _read(self._proc / "self" / "cgroup").splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::")), None)
        if path is None or ".." in path:  # of v1, or outside of what can be seen here
            return False
        root = self._sys / "fs" / "cgroup"
        own = root / path.lstrip("/")
        groups = [own, *own.parents]
        groups = groups[: groups.index(root) + 1] if root in groups else []
        return any(_read(group / "memory.swap.max").strip() == "0" for group in groups)

    def _lock(self) -> bool:
        """Keep all pages in RAM, those to come included, if the system lets this process."""
        unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
        status = dict(
            line.split(":", 1) for line in _read(self._proc / "self" / "status").splitlines()
        )
        capable = int(status.get("CapEff", "0"), 16) >> _CAP_IPC_LOCK & 1
        if not unlimited and not capable:  # a limit would make later allocations fail
            return False
        flags = _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT
        return bool(ctypes.CDLL(None).mlockall(flags) == 0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
