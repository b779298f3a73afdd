"""What Python tells its audit hooks of a run that should only read."""

import os
import re
import sys

OUTPUT = "out.safetensors"
OUTPUTS = (OUTPUT, "out.pt", "bn.safetensors", "out")
WORK = f"{OUTPUT}.soup.incomplete"
WORKS = (WORK, "out.soup.incomplete")
# The names by which an output is written, and those of what a soup has found.
OWN = re.compile(
    "|".join(map(re.escape, OUTPUTS))
    + r"|(.*/)?\.[^/]*\.swatool-[^/]*|(out|out\.safetensors)\.soup\.incomplete(/.*)?|(candidate|sum)-\d.*"
    + r"|model\.safetensors|(generation_)?config\.json"  # in a hidden folder
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What a run that only reads has no reason to do.
NEVER = (
    *("pickle.find_class", "exec", "compile", "marshal.loads", "code.__new__", "ctypes.dlopen"),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen"),
    *("socket.__new__", "socket.connect", "socket.getaddrinfo", "urllib.Request", "webbrowser.open"),
    *("os.symlink", "os.chmod"),
)
# What it may do to its own outputs; with how many names as its first arguments.
OF_NAMES = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "shutil.rmtree": 1, "os.rename": 2, "os.link": 2}


class Watch:
    """Notes what Python tells of while it is armed."""

    def __init__(self):
        self.armed = False
        self.events = []
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        if self.armed and self.concerns(event, args):
            self.events.append(f"{event} {str(args)[:200]}")

    @staticmethod
    def concerns(event, args):
        if event == "import":
            return args[0] not in sys.modules
        if event == "open":
            path, mode, flags = args
            writes = flags & WRITING if isinstance(flags, int) else set(mode or "").intersection("wax+")
            if isinstance(path, int) or path == os.devnull or OWN.fullmatch(os.fsdecode(path)):
                return False
            return writes and not os.path.isdir(path)  # in which a file is opened that has no name
        if event == "compile":
            return args[1] != "<unknown>"  # where a literal is parsed, which is not executed
        if event == "ctypes.dlopen":
            return args[0] is not None  # else what is loaded anyway, to exchange two names
        if event in OF_NAMES:
            # A file without a name is linked by its number, which is no name.
            names = [one for one in args[: OF_NAMES[event]] if isinstance(one, str) and not one.isdigit()]
            return not all(map(OWN.fullmatch, names))
        return event in NEVER
