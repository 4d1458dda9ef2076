"""What no sandbox can stop: programs that look better than they are. Another layer sees through them."""

from tests.strategy.evolve.hostile.program import HARMLESS, Program

FORGES = Program(
    "writes its own marks",
    "reach the twin by the caller's frames and change the score",
    HARMLESS,
    should_replan="f = sys._getframe()\nwhile f:\n"
    "    if 'trial' in f.f_globals: f.f_globals['SERVED_S'] = 0.0\n    f = f.f_back\nreturn True",
)
PATCHES = Program(
    "patches the twin",
    "replace a function of the twin's module",
    HARMLESS,
    top="twin = sys.modules.get('tests.strategy.evolve.entries')\nif twin: twin.cost_s = lambda *a: 0.0",
)
POISONS = Program(
    "poisons its successors",
    "make every later candidate look bad",
    HARMLESS,
    top="twin = sys.modules.get('tests.strategy.evolve.entries')\nif twin: twin.cost_s = lambda *a: 1e9\n"
    "sys.modules['math'].isfinite = lambda x: False\nsys.modules['loop.contracts'].Memo.LIMIT = 0",
)
DETECTS = Program(
    "detects the simulator",
    "behave in the twin, misbehave live",
    HARMLESS,
    should_replan="return 'tests.strategy.evolve.entries' in sys.modules",
    route="return 0 if 'tests.strategy.evolve.entries' in sys.modules else len(replicas) - 1",
)
DICE = Program(
    "throws dice",
    "answer differently each time",
    HARMLESS,
    route="return sys.modules['time'].monotonic_ns() // 7 % len(replicas)",
)
SLOW_LIVE = Program(
    "slow where it is live",
    "compute for ever outside of the twin",
    "timeout",
    route="while 'tests.strategy.evolve.entries' not in sys.modules: pass\nreturn 0",
)
FIRST_WINS = Program(
    "remembers across jobs",
    "learn the windows in one job, use them in the next",
    HARMLESS,
    top="seen = sys.modules['math'].__dict__.setdefault('seen', [])",
    should_replan="seen.append(obs.tick)\nreturn len(seen) > 1",
)

PROGRAMS = (FORGES, PATCHES, POISONS, DETECTS, DICE, SLOW_LIVE, FIRST_WINS)
