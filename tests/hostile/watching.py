"""What Python tells its audit hooks of a run that should only read."""

import os
import sys

OUTPUT = "out.safetensors"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What a run that only reads has no reason to do.
NEVER = (
    *("pickle.find_class", "exec", "compile", "marshal.loads", "code.__new__", "ctypes.dlopen"),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen"),
    *("socket.__new__", "socket.connect", "socket.getaddrinfo", "urllib.Request", "webbrowser.open"),
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "shutil.rmtree"),
)


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
            # A file without a name is opened by the name of its folder.
            return writes and not isinstance(path, int) and path != os.devnull and not os.path.isdir(path)
        if event == "compile":
            return args[1] != "<unknown>"  # where a literal is parsed, which is not executed
        if event == "os.link":
            return args[1] != OUTPUT
        return event in NEVER
