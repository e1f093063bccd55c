"""Runs a program under the system calls that a unit of systemd allows: `python syscall_filter.py FILE PROGRAM …`.

The file has one name of a system call a line. A call that is not there kills the process, where systemd's filter would
answer EPERM: so nothing that is refused goes unseen. The filter is made by libseccomp, as systemd's own is. No memory
can be made executable either (MemoryDenyWriteExecute), where Linux has a switch for that (6.3 and newer).
"""

import ctypes
import os
import sys
from pathlib import Path

PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1  # of linux/prctl.h
ALLOW, KILL = 0x7FFF0000, 0x80000000  # SCMP_ACT_ALLOW, SCMP_ACT_KILL_PROCESS of seccomp.h


def main(file: str, *program: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0)
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_rule_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint)
    library.seccomp_load.argtypes = (ctypes.c_void_p,)
    context = library.seccomp_init(KILL)
    for name in Path(file).read_text(encoding="ascii").split():
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # another architecture's call has none here
            assert library.seccomp_rule_add(context, ALLOW, number, 0) == 0, name
    assert library.seccomp_load(context) == 0
    os.execv(program[0], program)


if __name__ == "__main__":
    main(*sys.argv[1:])
