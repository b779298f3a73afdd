"""The names that only an attack puts into a pickle.

swatool looks no name up and calls nothing, so they could do no harm. They are refused all the same, because
somebody who averages such a file should learn what it is. Names that honest checkpoints hold (functools,
pathlib, numpy, getattr for nested enums, cloudpickle's functions) are left inert and are not listed.
"""

from __future__ import annotations

from itertools import accumulate

__all__ = ["is_attack"]

# With everything below them.
ATTACK_MODULES = frozenset(
    {
        *("_pickle", "cPickle", "marshal", "pickle", "shelve"),
        *("_posixsubprocess", "asyncio", "multiprocessing", "popen2", "pty", "subprocess"),
        *("_thread", "ctypes", "gc", "mmap", "sys"),
        *("bdb", "cProfile", "doctest", "idlelib", "pdb", "pydoc", "timeit"),
        *("codeop", "ensurepip", "imp", "importlib", "pkgutil", "runpy", "zipimport"),
        *("fileinput", "linecache", "nt", "os", "posix", "shutil", "tempfile"),
        *("ftplib", "httplib", "smtplib", "socket", "sqlite3", "telnetlib", "urllib.request", "urllib2"),
        *("webbrowser", "xmlrpc"),
        *("numpy.f2py", "torch.hub", "torch.utils.cpp_extension"),
    }
)
# Functions of modules that honest checkpoints name, too, or that share their name with people's own packages.
ATTACK_NAMES = frozenset(
    {
        *("_io.FileIO", "_io.open", "io.FileIO", "io.open", "io.open_code"),
        *("code.InteractiveConsole", "code.InteractiveInterpreter", "code.interact"),
        *("commands.getoutput", "commands.getstatusoutput"),
        *("numpy.load", "numpy.testing._private.utils.runstring", "operator.methodcaller"),
        *("torch.jit.load", "torch.load", "torch.serialization.load"),
    }
)
BUILTIN_MODULES = frozenset({"__builtin__", "__builtins__", "builtins"})
ATTACK_BUILTINS = frozenset(
    {
        *("__import__", "compile", "eval", "exec", "execfile"),
        *("file", "input", "open", "print", "raw_input"),
        *("breakpoint", "exit", "help", "quit", "reload"),
        *("apply", "delattr", "globals", "locals", "setattr", "vars"),
    }
)


def is_attack(module: str, name: str) -> bool:
    """Tell whether only an attack names this, also by a detour such as `os.system` of module `pathlib`."""
    if module in BUILTIN_MODULES:
        return name.partition(".")[0] in ATTACK_BUILTINS
    if f"{module}.{name}" in ATTACK_NAMES or _in_attack_module(module):
        return True
    outer, dot, _ = name.rpartition(".")
    return bool(dot) and _in_attack_module(outer)


def _in_attack_module(module: str) -> bool:
    return any(parent in ATTACK_MODULES for parent in accumulate(module.split("."), "{}.{}".format))
