"""Out of the process: files, network, processes, memory of others, descriptors, the ways to end."""

from tests.strategy.evolve.hostile.program import CRASH, ERROR, HARMLESS, LOAD, Program

_IMPORT = "load = sys.modules['importlib'].import_module"
_BUILTIN = "def builtin(name): return sys.modules['_imp'].create_builtin(sys.modules['importlib'].machinery.ModuleSpec(name, None))"


def _once(name: str, tries: str, statement: str, ends: str = ERROR, top: str = "") -> Program:
    return Program(name, tries, ends, route=f"{statement}\nreturn 0", top=top)


PROGRAMS = (
    _once("reads the canary", "read a file", "os.read(os.open(CANARY, 0), 9)"),
    _once("writes the canary", "overwrite a file", "os.open(CANARY, os.O_WRONLY | os.O_TRUNC)"),
    _once("removes the canary", "delete a file", "os.unlink(CANARY)"),
    _once("makes a file", "leave a file behind", "os.open(CANARY + '.escaped', os.O_CREAT | os.O_WRONLY)"),
    _once("links the canary", "give a file another name", "os.link(CANARY, CANARY + '.escaped')"),
    _once("lists a directory", "look around", "os.listdir('/')"),
    _once("stats a file", "ask whether a file is there", "os.stat('/etc/passwd')"),
    _once("changes directory", "move away", "os.chdir('/tmp')"),
    _once("reads /proc", "read the parent's memory map", "os.open(f'/proc/{os.getppid()}/maps', 0)"),
    _once("writes /proc/self/mem", "patch its own text pages", "os.open('/proc/self/mem', os.O_RDWR)"),
    _once("opens with io", "open by the io module", "sys.modules['io'].open(CANARY).read()"),
    _once(
        "opens with codecs", "open by another module's builtins", "sys.modules['codecs'].open(CANARY).read()"
    ),
    _once("memory file", "make a file that lies in memory", "os.memfd_create('x')"),
    _once("runs a shell", "run a command", "if os.system('touch ' + CANARY + '.escaped'): raise OSError"),
    _once("executes", "become another program", "os.execv('/bin/true', ['true'])"),
    _once("spawns", "start another program", "os.posix_spawn('/bin/true', ['true'], {})"),
    _once("forks once", "leave a child behind", "os.fork()"),
    _once("kills its parent", "kill the template", "os.kill(os.getppid(), 9)"),
    _once("kills all", "kill whatever it can", "os.kill(-1, 9)"),
    _once("kills its group", "kill its process group", "os.killpg(0, 9)"),
    _once("stops itself", "stop, so that it cannot be asked", "os.kill(os.getpid(), 19)"),
    _once(
        "traces the parent",
        "attach to the parent by ptrace",
        "(libc.syscall(101, 16, os.getppid(), 0, 0) == 0) or [].pop()",
        "error|not loaded",
        "ctypes = sys.modules['ctypes']\nlibc = ctypes.CDLL(None)",
    ),
    _once(
        "calls a system call",
        "open a socket by ctypes, past Python",
        "(libc.syscall(41, 2, 1, 0) >= 0) or [].pop()",
        "error|not loaded",
        "ctypes = sys.modules['ctypes']\nlibc = ctypes.CDLL(None)",
    ),
    _once(
        "executable memory",
        "map pages to run machine code in",
        "(libc.mmap(0, 4096, 7, 34, -1, 0) > 0) or [].pop()",
        "error|not loaded",
        "ctypes = sys.modules['ctypes']\nlibc = ctypes.CDLL(None)",
    ),
    _once(
        "reads a null pointer",
        "crash the process by ctypes",
        "ctypes.string_at(0)",
        "crash|error|not loaded",
        "ctypes = sys.modules['ctypes']",
    ),
    _once(
        "forged code object",
        "crash the interpreter by bytecode that it never compiled",
        "f = lambda: 0\nf.__code__ = f.__code__.replace(co_code=b'd\\xff' * 9 + b'S\\x00')\nf()",
        "crash|error|harmless",  # the interpreter may live through it
    ),
    _once(
        "connects",
        "reach the network",
        "socket = load('_socket').socket\nsocket().connect(('127.0.0.1', PORT))",
        ERROR,
        _IMPORT,
    ),
    _once(
        "connects to a path",
        "reach a service by a Unix socket",
        "socket = load('_socket').socket\nsocket(1).connect('/run/dbus')",
        ERROR,
        _IMPORT,
    ),
    _once("imports a file", "import a module that was not loaded", "load('wave')", ERROR, _IMPORT),
    _once("imports at the top", "import what a policy may not", "pass", LOAD, "import subprocess"),
    _once(
        "imports relatively",
        "import from the package it does not have",
        "pass",
        LOAD,
        "from . import policy_api",
    ),
    _once(
        "builtin socket",
        "build a socket out of an internal C module",
        "builtin('posix').fork()",
        "error|not loaded",
        _BUILTIN,
    ),
    _once("changes user", "become root again", "os.setresuid(0, 0, 0)"),
    _once("changes priority", "push others aside", "os.setpriority(0, 0, -20)"),
    _once("opens a pipe", "make descriptors of its own", "os.pipe()"),
    _once("duplicates descriptors", "keep the pipe under another number", "os.dup(4)"),
    _once("closes its pipe", "cut the line", "os.close(4)\nos.close(3)"),
    _once("closes everything", "cut all lines", "os.closerange(0, 64)", "harmless|error"),
    _once("reads standard input", "wait for a person", "os.read(0, 1)"),
    _once("writes standard error", "write to the terminal", "os.write(2, b'x')"),
    _once(
        "prints",
        "write by a file object that was open before",
        "sys.stdout.write('x' * 99999)\nsys.stdout.flush()",
    ),
    _once("reads the pipe", "steal its own next question", "os.read(3, 1)", "timeout"),
    _once("exits", "end the process by SystemExit", "sys.exit(0)"),
    _once("exits for good", "end the process without a word", "os._exit(0)", CRASH),
    _once("aborts", "end the process by a signal", "os.abort()", CRASH),
    _once(
        "raises at exit",
        "run code when the process ends",
        "load('atexit').register(os.write, 4, b'x')\nos._exit(3)",
        "crash|error",
        _IMPORT,
    ),
    _once(
        "alarms",
        "interrupt itself by a timer",
        "signal = load('signal')\nsignal.setitimer(signal.ITIMER_REAL, 0.01)",
        ERROR,
        _IMPORT,
    ),
    _once(
        "handles signals",
        "catch the signal that ends it",
        "signal = load('signal')\nfor s in range(1, 32):\n    signal.signal(s, lambda *_: None)",
        ERROR,
        _IMPORT,
    ),
    _once(
        "cannot be killed",
        "ignore every signal, then hang",
        "signal = load('signal')\nfor s in range(1, 64):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
        "timeout",
        _IMPORT,
    ),
    _once(
        "dumps core", "leave a core file", "load('faulthandler')._sigsegv()", "harmless|crash|error", _IMPORT
    ),
    _once(
        "reads the environment",
        "look for secrets",
        "if any('KEY' in k or 'TOKEN' in k or 'HOME' in k for k in os.environ): raise KeyError\nreturn 0",
        HARMLESS,
    ),
)
