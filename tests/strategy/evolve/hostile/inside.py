"""Inside the process: reflection, other people's objects, the memo, the protocol, the answers."""

from tests.strategy.evolve.hostile.program import CRASH, ERROR, HARMLESS, INFEASIBLE, LOAD, Program

_SERVING = "serving = sys.modules['strategy.evolve.worker.serving']"


def _answer(name: str, tries: str, expression: str, ends: str = ERROR, top: str = "") -> Program:
    return Program(name, tries, ends, route=f"return {expression}", top=top)


def _priority(name: str, tries: str, expression: str, ends: str = ERROR) -> Program:
    return Program(name, tries, ends, priority=f"return {expression}")


def _plan(name: str, tries: str, expression: str, ends: str) -> Program:
    return Program(name, tries, ends, plan=f"return {expression}")


def _spam(name: str, tries: str, data: str, ends: str) -> Program:
    return Program(name, tries, ends, route=f"os.write(4, {data})\nreturn 0")


PROGRAMS = (
    Program(
        "walks subclasses",
        "reach os by ().__class__.__base__.__subclasses__()",
        ERROR,
        route="c = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]\n"
        "return c.__init__.__globals__['system']('touch ' + CANARY + '.escaped') and [].pop()",
    ),
    Program(
        "walks to open",
        "reach the real open by a function's globals",
        ERROR,
        route="return len(math.__loader__.__class__.__init__.__globals__['__builtins__']['open'](CANARY).read())"
        " if 0 else len(random.Random.__init__.__globals__['__builtins__']['open'](CANARY).read())",
    ),
    Program(
        "walks frames",
        "reach the worker's loop by its caller's frame",
        ERROR,
        route="f = sys._getframe()\nwhile f.f_back: f = f.f_back\nreturn f.f_builtins['open'](CANARY)",
    ),
    Program(
        "walks a traceback",
        "reach the caller by a traceback",
        ERROR,
        route="try: 1 / 0\nexcept ZeroDivisionError as e: f = e.__traceback__.tb_frame\nwhile f.f_back: f = f.f_back\n"
        "return f.f_builtins['open'](CANARY)",
    ),
    Program(
        "walks a generator",
        "reach the caller by gi_frame",
        ERROR,
        route="def g():\n    yield it.gi_frame.f_back\nit = g()\nf = next(it)\nwhile f.f_back: f = f.f_back\nreturn f.f_builtins['open'](CANARY)",
    ),
    Program(
        "formats its way out",
        "read attributes by a format string",
        ERROR,
        route="return '{0.__init__.__globals__[_os].environ}'.format(random.Random)",
    ),
    Program(
        "decorator",
        "run code by a decorator at import",
        LOAD,
        top="@lambda f: os.open(CANARY, 0)\ndef touch(): pass",
    ),
    Program(
        "metaclass",
        "run code by a metaclass at import",
        LOAD,
        top="class M(type):\n    def __new__(m, *a): return os.open(CANARY, 0)\nclass C(metaclass=M): pass",
    ),
    Program(
        "evaluates",
        "eval what the static check never saw",
        ERROR,
        route="return ().__class__.__base__.__subclasses__()[0].__subclasses__ and sys.modules['builtins'].eval('os.open(CANARY, 0)', globals_of())",
        top="def globals_of(): return sys._getframe(1).f_globals",
    ),
    Program(
        "unpickles",
        "run code by a pickle of its own",
        ERROR,
        route="code = b'cos\\nsystem\\n(S\"touch %s.escaped\"\\ntR.' % CANARY.encode()\nreturn sys.modules['pickle'].loads(code) and [].pop()",
    ),
    Program(
        "pickle as an answer",
        "answer with an object that runs code where it is read",
        ERROR,
        top="class P:\n    def __reduce__(self): return os.system, ('touch ' + CANARY + '.escaped',)",
        route="return P()",
    ),
    Program(
        "pickle as a reason",
        "have the parent unpickle a plan's reason",
        ERROR,
        top="class P(str):\n    def __reduce__(self): return os.system, ('x',)",
        plan="return Plan(fill(obs, loads(obs), (), 256), [P('a')])\n",
        should_replan="raise ValueError(P('x'))",
    ),
    Program(
        "unlocks",
        "tell the worker that it is not locked",
        HARMLESS,
        route="sys.modules['strategy.evolve.worker.lockdown']._State.locked = None\nreturn 0",
    ),
    Program(
        "patches the API",
        "change policy_api for the next caller",
        HARMLESS,
        top="api = sys.modules['strategy.policy_api']\napi.Plan = api.fill = api.loads = None",
    ),
    Program(
        "patches Memo",
        "make the memo accept what it must not",
        "error|harmless",
        top="Memo = sys.modules['loop.contracts'].Memo\nMemo.__setitem__ = dict.__setitem__",
        should_replan="memo['x'] = float('inf')\nreturn True",
    ),
    Program(
        "patches json",
        "make the worker say something else",
        ERROR,
        top="sys.modules['json'].dumps = lambda *_: '[' * 100000",
    ),
    Program(
        "patches struct",
        "answer with an index of its own making",
        "error|crash",
        top="wire = sys.modules['strategy.evolve.worker.wire']\n"
        "class S:\n    size = 25\n    def pack(self, *a): return b'\\x15\\0\\0\\0\\0' + b'\\xff' * 20\nwire.DISPATCHED = S()",
    ),
    Program(
        "replaces the loop",
        "take the worker's loop over and answer nothing",
        "timeout",
        top=_SERVING,
        route="serving.failed = serving.frame = None\nos.read(3, 4096) if 0 else None\nwhile True: pass",
    ),
    Program(
        "traces",
        "see every line that the worker executes",
        HARMLESS,
        route="sys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\nreturn 0",
    ),
    Program(
        "warns",
        "write by the warnings module",
        HARMLESS,
        route="sys.modules['warnings'].warn('x' * 9999)\nreturn 0",
    ),
    Program(
        "reaches the collector",
        "change what gc.get_objects shows",
        HARMLESS,
        route="for o in sys.modules['gc'].get_objects():\n    if type_of(o) is dict and 'request' in o: o.pop('request', None)\nreturn 0",
        top="type_of = ().__class__.__class__",
    ),
    Program(
        "changes its inputs",
        "make the request look served",
        ERROR,
        route="request.input_tokens = 0\nreturn 0",
    ),
    Program(
        "changes frozen inputs",
        "make the observation look better",
        "harmless|error",
        should_replan="().__class__.__base__.__setattr__(obs, 'pain', 0.0)\nreturn True",
        route="().__class__.__base__.__setattr__(request, 'id', 0)\nreturn 0",
    ),
    Program(
        "forgets replicas",
        "clear the list of replicas for the next request",
        ERROR,
        route="replicas.clear()\nreturn 0",
    ),
    Program(
        "endless words",
        "raise an exception with a message of megabytes",
        ERROR,
        route="raise ValueError('x' * (1 << 24))",
    ),
    Program(
        "unprintable exception",
        "raise what raises when it is printed",
        ERROR,
        route="class E(BaseException):\n    def __str__(self): raise self\nraise E",
    ),
    Program(
        "exception that hangs",
        "raise what hangs when it is printed",
        "timeout",
        route="class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    ),
    Program("base exception", "raise past `except Exception`", ERROR, route="raise BaseException"),
    Program("interrupts", "raise KeyboardInterrupt", ERROR, route="raise KeyboardInterrupt"),
    Program("generator exit", "raise GeneratorExit", ERROR, priority="raise GeneratorExit"),
    Program("stop iteration", "raise StopIteration", ERROR, priority="raise StopIteration"),
    Program(
        "terminal escapes",
        "send control characters to the operator's terminal",
        ERROR,
        route="raise ValueError('\\x1b[2J\\x1b]0;owned\\x07')",
    ),
    Program(
        "surrogates in an error",
        "send text that no database can store",
        ERROR,
        route="raise ValueError('\\ud800')",
    ),
    Program(
        "surrogates in a plan",
        "send text that no database can store",
        HARMLESS,
        plan="return Plan(fill(obs, loads(obs), (), 256), '\\ud800' * 99)",
    ),
    # answers
    _answer("index too high", "route to a replica that is not there", "len(replicas)"),
    _answer("negative index", "route from the end", "-1"),
    _answer("index of 80 bits", "overflow the protocol's field", "1 << 80"),
    _answer("float index", "answer with another type", "0.0"),
    _answer("bool index", "answer with another type", "True"),
    _answer("no answer", "answer nothing", "None"),
    _answer("NaN index", "answer NaN", "float('nan')"),
    _answer("huge answer", "answer with 100 MB", "'x' * 100_000_000"),
    _answer(
        "int subclass",
        "answer with an int that lies",
        "I(0)",
        ERROR,
        "class I(int):\n    def __index__(self): return 999\n    def __lt__(self, o): return False\n    def __eq__(self, o): return True",
    ),
    _answer(
        "str subclass",
        "answer with a str that raises when it is shown",
        "S('x')",
        ERROR,
        "class S(str):\n    def __repr__(self): raise SystemExit\n    __str__ = __format__ = __repr__",
    ),
    _answer(
        "index trap",
        "run code when the answer is compared",
        "T()",
        ERROR,
        "class T:\n    def __index__(self): return os.open(CANARY, 0)\n    __eq__ = __lt__ = __hash__ = __bool__ = __int__ = __index__",
    ),
    _answer(
        "lies about its class",
        "claim to be an int",
        "T()",
        ERROR,
        "class T:\n    __class__ = int\n    def __ge__(self, o): return True\n    __le__ = __lt__ = __gt__ = __ge__",
    ),
    _priority("NaN priority", "break the order of the queue", "float('nan')"),
    _priority("minus infinity", "jump the queue for ever", "float('-inf')"),
    _priority("rejects everything", "look good by serving nobody", "float('inf')", HARMLESS),
    _priority("complex priority", "answer what has no order", "1j"),
    _priority("priority of 400 digits", "overflow a double", "10 ** 400"),
    Program(
        "float subclass",
        "answer with a float that lies",
        HARMLESS,
        top="class F(float):\n    def __lt__(self, o): return True\n    def __float__(self): return 1e300",
        priority="return F(1.0)",
    ),
    _plan("no plan", "answer nothing", "None", ERROR),
    _plan("empty plan", "turn everything off", "Plan(())", INFEASIBLE),
    _plan(
        "invented device", "use what is not there", "Plan((ReplicaSpec('tiny', ('moon/0',)),))", INFEASIBLE
    ),
    _plan(
        "one device twice",
        "use a device twice",
        "Plan((ReplicaSpec('tiny', ('n00/0',)), ReplicaSpec('tiny', ('n00/0',))))",
        INFEASIBLE,
    ),
    _plan(
        "negative parallelism", "ask for -1 stages", "Plan((ReplicaSpec('tiny', ('n00/0',), tp=-1),))", ERROR
    ),
    _plan(
        "no batch",
        "allow no sequence at all",
        "Plan((ReplicaSpec('tiny', ('n00/0',), max_num_seqs=0),))",
        ERROR,
    ),
    _plan(
        "too large a model",
        "put a model where it does not fit",
        "Plan((ReplicaSpec('large', ('n00/0',)),))",
        INFEASIBLE,
    ),
    _plan(
        "million replicas",
        "drown the guard",
        "Plan((ReplicaSpec('tiny', ('n00/0',)),) * 1_000_000)",
        "error|crash|timeout",
    ),
    _plan(
        "plan of megabytes",
        "answer beyond the bound",
        "Plan((ReplicaSpec('tiny', ('n' * 100_000,) * 100),))",
        CRASH,
    ),
    Program(
        "plan that lies",
        "answer with a subclass of Plan whose replicas change when they are read",
        "error|infeasible",
        top="class L(Plan):\n    __slots__ = ()\n    replicas = [(0,)] * 3",
        plan="return L.__new__(L)",
    ),
    Program(
        "trigger without a bool", "answer with something that is true", ERROR, should_replan="return 'yes'"
    ),
    Program(
        "trigger by a trap",
        "run code when the answer is tested",
        ERROR,
        top="class B:\n    def __bool__(self): return os.open(CANARY, 0) > 0",
        should_replan="return B()",
    ),
    # memo
    Program("full memo", "fill the memo", ERROR, route="for i in range(999): memo[str(i)] = 1.0\nreturn 0"),
    Program(
        "infinite memo",
        "store infinity past the check",
        ERROR,
        should_replan="dict.__setitem__(memo, 'x', float('inf'))\nreturn True",
    ),
    Program(
        "memo of objects",
        "keep objects in the memo",
        ERROR,
        should_replan="dict.__setitem__(memo, 'x', [1, 2])\nreturn True",
    ),
    Program(
        "memo of a million",
        "keep megabytes in the memo",
        "error|crash|timeout",
        should_replan="dict.update(memo, {str(i): 1.0 for i in range(200000)})\nreturn True",
    ),
    Program(
        "memo with odd keys",
        "use keys that no journal can store",
        "error|harmless",
        should_replan="dict.__setitem__(memo, '\\ud800\\x00', 1.0)\nreturn True",
    ),
    Program(
        "NaN in the memo",
        "make the journal differ from itself",
        ERROR,
        route="memo['x'] = float('nan')\nreturn 0",
    ),
    # the wire
    _spam(
        "speaks without being asked",
        "answer a question that was not asked",
        "b'\\x15\\0\\0\\0\\0' + b'\\0' * 20",
        "crash|harmless",
    ),
    _spam("speaks garbage", "break the framing", "b'\\xff' * 64", CRASH),
    _spam("claims a huge answer", "make the parent wait for 4 GB", "b'\\xff\\xff\\xff\\xff\\0'", CRASH),
    _spam("claims an empty answer", "send a frame of no length", "b'\\0\\0\\0\\0'", CRASH),
    _spam(
        "half an answer",
        "send a prefix, and then the rest as something else",
        "b'\\x15\\0\\0'",
        "crash|timeout",
    ),
    _spam(
        "failure without end",
        "report an exception that is no JSON",
        "b'\\x09\\0\\0\\0\\x01[[[[[[[['",
        "error|crash",
    ),
    _spam(
        "nested failure",
        "report an exception nested too deep to read",
        "b'\\xff\\xff\\0\\0\\x01' + b'[' * 65534",
        "error|crash|timeout",
    ),
    Program(
        "fills the pipe",
        "block on its own pipe",
        "crash|timeout",
        route="while True: os.write(4, b'x' * 65536)",
    ),
    Program(
        "drips",
        "send an answer byte by byte, for ever",
        "timeout|crash",
        route="now = sys.modules['time'].monotonic\nos.write(4, b'\\xff\\xff\\0\\0\\x01')\nfor i in range(65534):\n"
        "    t = now() + 0.05\n    while now() < t: pass\n    os.write(4, b'x')\nreturn 0",
    ),
    Program(
        "answers for later",
        "answer the next question in advance",
        "crash|harmless|timeout",
        route="wire = sys.modules['strategy.evolve.worker.wire']\nn = memo['n'] = memo.get('n', 1) + 1\n"
        "os.write(4, wire.DISPATCHED.pack(21, 0, int(n), 0, 1.0))\nreturn 0",
    ),
)
