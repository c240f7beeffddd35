"""What people type, in every format and with every mistake, against the config they meant."""

from __future__ import annotations

import doctest
import json
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from nanoscale.errors import UserError
from nanoscale.spec import sources
from nanoscale.spec.config import ExperimentConfig, all_fields, flatten
from nanoscale.spec.sources import (
    Source,
    build,
    help_text,
    load_config,
    parse_arguments,
    typed,
)


def config(*arguments: object) -> ExperimentConfig:
    return build(parse_arguments([str(a) for a in arguments]))


def value(key: str, text: str) -> object:
    """What `--key=text` gives."""
    return flatten(config(f"--{key}={text}"))[key]


def refusal(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        config(*arguments)
    return str(caught.value)


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("learning_rate", "1e-3", 0.001),
        ("learning_rate", "1", 1.0),
        ("learning_rate", "-0.0", None),
        ("n_layer", "1e1", 10),
        ("n_layer", "4.0", 4),
        ("n_layer", "1_0", 10),
        ("max_iters", "0", 0),
        ("seed", str(2**63 - 1), 2**63 - 1),
        ("final_eval_tokens", "1e6", 1_000_000),
        ("bias", "True", True),
        ("bias", "true", True),
        ("bias", "FALSE", False),
        ("bias", "1", True),
        ("bias", "0", False),
        ("n_kv_head", "None", None),
        ("n_kv_head", "null", None),
        ("n_kv_head", "4", 4),
        ("branch_from", "none", None),
        ("branch_from", "runs/a@100", "runs/a@100"),
        ("checkpoint_steps", "[10, 20]", (10, 20)),
        ("checkpoint_steps", "(10,20)", (10, 20)),
        ("checkpoint_steps", "10,20", (10, 20)),
        ("checkpoint_steps", "10", (10,)),
        ("val_sets", "val,wiki", ("val", "wiki")),
        ("val_sets", "[val, wiki]", ("val", "wiki")),
        ("val_sets", "('val', 'wiki')", ("val", "wiki")),
        ("val_sets", "data/wiki", ("data/wiki",)),
        ("val_sets", "[]", ()),
        ("checkpoint_steps", "[1e2]", (100,)),
        ("checkpoint_steps", "[]", ()),
        ("wandb_run_name", "a=b=c", "a=b=c"),
        ("wandb_run_name", "lr=1e-3", "lr=1e-3"),
        ("wandb_run_name", "", ""),
        ("wandb_run_name", "'quoted'", "quoted"),
        ("wandb_run_name", '"quoted"', "quoted"),
        ("wandb_run_name", "it's", "it's"),
        ("wandb_run_name", "'", "'"),
        ("wandb_run_name", "'tis", "'tis"),
        ("wandb_run_name", "None", "None"),
        ("dataset", "1234", "1234"),
        ("out_dir", "a b", "a b"),
        ("out_dir", "--x", "--x"),
        ("parametrization.mode", "MuP", "muP"),
        ("parametrization.mode", "sp", "SP"),
        ("parametrization.mode", "completep", "CompleteP"),
        ("parametrization.alpha", "1", 1.0),
    ],
)
def test_a_flag_is_coerced_by_its_field(key, text, expected):
    if expected is None and text == "-0.0":
        assert "above 0" in refusal(f"--{key}={text}")
        return
    found = value(key, text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--learning_rate=nan", "a number"),
        ("--learning_rate=inf", "a number"),
        ("--learning_rate=1e999", "a number"),
        ("--learning_rate=True", "a number"),
        ("--learning_rate=", "a number"),
        ("--learning_rate=1e-3x", "a number"),
        ("--learning_rate=[1]", "a number"),
        ("--learning_rate=None", "a number"),
        ("--learning_rate=" + "9" * 400, "a number"),
        ("--learning_rate=1j", "a number"),
        ("--learning_rate=__import__('os')", "a number"),
        ("--n_layer=1.5", "a whole number"),
        ("--n_layer=four", "a whole number"),
        ("--n_layer=True", "a whole number"),
        ("--n_layer=" + "9" * 400, "a whole number"),
        ("--n_layer={[]: 1}", "a whole number"),
        ("--n_layer=" + "(" * 999, "a whole number"),
        ("--n_layer=nan", "a whole number"),
        ("--max_iters=-1e999", "a whole number"),
        ("--bias=yes", "True or False"),
        ("--bias=2", "True or False"),
        ("--bias=1.0", "True or False"),
        ("--bias=None", "True or False"),
        ("--bias=", "True or False"),
        ("--bias=[]", "True or False"),
        ("--checkpoint_steps=[1, x]", "a whole number"),
        ("--checkpoint_steps=[1.5]", "a whole number"),
        ("--checkpoint_steps=None", "a whole number"),
        ("--parametrization.alpha=big", "a number"),
        ("--n_layer=-1", "at least 1"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_typed_and_what_would_do(argument, words):
    message = refusal(argument)
    key, _, text = argument.partition("=")
    assert message.startswith(f"{key}=")
    assert words in message
    assert text in message or "[" in text


def test_paths_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/me")
    keys = ("out_dir", "data_root", "dataset", "branch_from", "parametrization.rules")
    assert [value(key, "~/x,~/y") for key in keys] == ["/me/x,~/y"] * len(keys)
    assert value("out_dir", "'~'") == "/me"
    assert value("out_dir", "x/~") == "x/~"
    assert value("wandb_run_name", "~/x") == "~/x"  # no path
    assert config(written(tmp_path, "a.toml", "out_dir = '~/x'\n")).out_dir == "/me/x"
    assert load_config(data_root="~/x").data_root == "/me/x"


# --- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "near"),
    [
        ("--use_rop=True", "use_rope"),
        ("--batch-size=4", "batch_size"),
        ("--n_layers=4", "n_layer"),
        ("--learningrate=1", "learning_rate"),
        ("--mode=muP", "parametrization.mode"),
        ("--alpha=1", "parametrization.alpha"),
        ("--Seed=1", "seed"),
        ("--parametrisation.mode=SP", "parametrization.mode"),
        ("--parametrization.mod=SP", "parametrization.mode"),
    ],
)
def test_a_misspelt_key_names_its_nearest(argument, near):
    message = refusal(argument)
    assert message.startswith(argument.split("=")[0])
    assert message.endswith(f"did you mean {near!r}?")


@pytest.mark.parametrize("argument", ["--zzz=1", "--x=1", "--=1", "--moe_every=1"])
def test_a_key_like_no_other_gets_no_suggestion(argument):
    assert "unknown key" in refusal(argument)
    assert "did you mean" not in refusal(argument)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--compile", "write --compile=True"),
        ("--n_layer", "write --n_layer=VALUE"),
        ("--compil", "did you mean 'compile'"),
        ("--", "needs a value"),
        ("-n_layer=4", "--key=value"),
        ("-h", "--key=value"),
        ("n_layer=4", "config files end in"),
        ("train", "config files end in"),
    ],
)
def test_a_malformed_argument_is_refused_with_the_remedy(argument, words):
    assert words in refusal(argument)


# --- files -------------------------------------------------------------------------------------

SAME = {
    "a.py": 'n_layer = 4\nlearning_rate = 1\nbias = True\nn_kv_head = None\nout_dir = "x=y"\n'
    'checkpoint_steps = [5, 9]\nparametrization.mode = "MuP"\n'
    "parametrization.base_n_embd = 64\n",
    "b.py": 'n_layer, bias = 4, 1\nlearning_rate = 1\nn_kv_head = None\nout_dir: str = "x=y"\n'
    'checkpoint_steps = (5, 9)\nparametrization = dict(mode="muP", base_n_embd=64)\n',
    "a.toml": 'n_layer = 4\nlearning_rate = 1\nbias = true\nout_dir = "x=y"\n'
    'checkpoint_steps = [5, 9]\n[parametrization]\nmode = "MuP"\nbase_n_embd = 64\n',
    "b.toml": 'n_layer = 4\nlearning_rate = 1e0\nbias = true\nout_dir = "x=y"\n'
    'checkpoint_steps = [5, 9]\nparametrization.mode = "mup"\n'
    '"parametrization.base_n_embd" = 64\n',
    "a.yaml": "n_layer: 4\nlearning_rate: 1\nbias: yes\nn_kv_head: null\nout_dir: x=y\n"
    "checkpoint_steps: [5, 9]\nparametrization:\n  mode: MuP\n  base_n_embd: 64\n",
    "b.yml": "n_layer: 4e0\nlearning_rate: 1e0\nbias: true\nn_kv_head:\nout_dir: 'x=y'\n"
    "checkpoint_steps:\n- 5\n- 9\nparametrization.mode: muP\n"
    "parametrization.base_n_embd: 64\n",
    "a.json": json.dumps(
        {
            "n_layer": 4,
            "learning_rate": 1,
            "bias": True,
            "n_kv_head": None,
            "out_dir": "x=y",
            "checkpoint_steps": [5, 9],
            "parametrization": {"mode": "MuP", "base_n_embd": 64},
        }
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_every_format_says_the_same(tmp_path, name):
    flags = [
        "--n_layer=4",
        "--learning_rate=1",
        "--bias=True",
        "--n_kv_head=None",
        "--out_dir=x=y",
        "--checkpoint_steps=[5,9]",
        "--parametrization.mode=muP",
        "--parametrization.base_n_embd=64",
    ]
    assert config(written(tmp_path, name, SAME[name])) == config(*flags) != ExperimentConfig()


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.yaml", ""), ("a.yaml", "# nothing\n"), ("a.toml", ""), ("a.json", "{}"), ("a.py", "")],
)
def test_an_empty_file_changes_nothing(tmp_path, name, text):
    assert config(written(tmp_path, name, text)) == ExperimentConfig()


def test_a_later_source_wins_over_an_earlier_one(tmp_path):
    first = written(tmp_path, "first.py", "n_layer = 3\nn_head = 3\nmax_iters = 7\n")
    second = written(tmp_path, "second.toml", "n_layer = 5\nmax_tokens = 1e6\n")
    found = config("--n_layer=2", "--seed=9", first, second, "--n_head=2")
    assert (found.n_layer, found.n_head, found.seed) == (5, 2, 9)
    assert (found.max_iters, found.max_tokens) == (None, 1e6)
    assert config("--n_layer=2", "--n_layer=6").n_layer == 6


def test_a_python_file_sees_the_values_before_it(tmp_path):
    first = written(tmp_path, "first.py", "batch_size = 6\nparametrization.base_n_layer = 3\n")
    second = written(
        tmp_path,
        "second.py",
        "batch_size *= 2\nn_layer = parametrization.base_n_layer * 2\n"
        "max_iters = max_iters // 1000\nwandb_run_name = wandb_run_name + '-b'\n",
    )
    found = config(first, "--batch_size=7", second)
    assert (found.batch_size, found.n_layer, found.max_iters) == (14, 6, 600)
    assert found.wandb_run_name == "gpt2-b"


BABY = """# small, for quick looks
import time
from math import sqrt as _root

out_dir = 'out-small'
eval_interval = 250 # often
eval_iters = 20
always_save_checkpoint = False
wandb_log = False # override via command line if you like
wandb_project = 'small'
wandb_run_name = 'ft-' + str(time.time())

dataset = "shakespeare_char"
gradient_accumulation_steps = 5 * 8
batch_size, block_size = 64, 256
_half = 192
n_embd = 2 * _half
n_layer = n_head = 6
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = max_iters # the same
min_lr = learning_rate / 10
weight_decay = 1e-1
if _root(n_embd) > 4:
    dropout = 0.2
def _helper():
    unrelated = 1
    return unrelated
class Notes:
    anything = 1
device = 'cpu'
compile = False
"""


def test_nanogpt_style_files_work_as_they_stand(tmp_path):
    found = config(written(tmp_path, "baby.py", BABY), "--compile=True")
    assert found.gradient_accumulation_steps == 40
    assert found.wandb_run_name.startswith("ft-")
    assert (found.batch_size, found.block_size, found.n_embd) == (64, 256, 384)
    assert (found.n_layer, found.n_head, found.dropout) == (6, 6, 0.2)
    assert (found.lr_decay_iters, found.min_lr) == (5000, 1e-4)
    assert found.compile


def test_the_shipped_configs_are_valid():
    shipped = sorted((ROOT / "config").glob("*.py"))
    assert shipped
    for file in shipped:
        assert config(file) != ExperimentConfig()


def test_a_comprehensions_variable_is_not_an_assignment(tmp_path):
    file = written(tmp_path, "a.py", "checkpoint_steps = [step * 10 for step in range(1, 4)]\n")
    assert config(file).checkpoint_steps == (10, 20, 30)


BASE = "n_layer = 3\ncompile = True\nmin_lr = None\nmin_lr_frac = 0.1\nlearning_rate = 2e-3\n"


@pytest.mark.parametrize(
    "text",
    [
        "exec(open('base.py').read())",
        "exec(open('base.py', encoding='utf-8').read(), globals())",
        "from base import *",
        "from base import n_layer, compile, min_lr, min_lr_frac, learning_rate",
        "import base as _base\nglobals().update(vars(_base))",
        "import base\nglobals().update({k: v for k, v in vars(base).items() if k[0] != '_'})",
        "import base as _b\nfor _name in dir(_b):\n"
        "    if _name in globals():\n        globals()[_name] = getattr(_b, _name)",
        "def _set():\n    global n_layer, compile, min_lr, min_lr_frac, learning_rate\n"
        "    from base import n_layer, compile, min_lr, min_lr_frac, learning_rate\n_set()",
    ],
)
@pytest.mark.parametrize("cwd", ["here", "beside"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # as users write it
def test_a_base_file_counts_however_it_is_taken_in(tmp_path, monkeypatch, text, cwd):
    for folder in ("here", "beside"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / cwd)
    written(tmp_path / "here", "base.py", BASE)
    file = written(tmp_path / "here", "over.py", f"{text}\nn_head = 2\n")
    sources = parse_arguments(["--min_lr=1e-5", str(file), "--n_embd=64"])
    found = build(sources)
    assert (found.n_layer, found.n_head, found.n_embd) == (3, 2, 64)
    assert (found.min_lr, found.min_lr_frac, found.learning_rate) == (None, 0.1, 2e-3)
    if "global n" not in text:  # Python itself stores these, equal ones unseen
        assert typed(sources)["compile"] is True


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # as users write it
def test_a_base_file_lies_in_the_working_folder_or_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    written(tmp_path, "base_here.py", "n_layer = 5\n")
    taken = "exec(open('base_here.py').read())\nfrom base_here import *\n"
    assert config(written(tmp_path / "config", "over.py", taken)).n_layer == 5
    written(tmp_path / "config", "base_here.py", "n_layer = 7\n")  # each file's own, not cached
    assert config(written(tmp_path / "config", "b.py", "from base_here import *\n")).n_layer == 7
    search = list(sys.path)
    opened = written(tmp_path / "config", "d.py", "exec(open('base_here.py').read())\n")
    assert config(opened).n_layer == 5  # where one stands comes first
    assert sys.path == search
    assert "line 1: FileNotFoundError" in refusal(written(tmp_path, "c.py", "open('nowhere.py')\n"))


@pytest.mark.parametrize(
    "text",
    [
        "if __name__ == '__main__':\n    n_layer = 2",
        "import sys\nsetattr(sys.modules[__name__], 'n_layer', 2)",
        "import sys\nvars(sys.modules[__name__])['n_layer'] = 2",
        "import __main__\nassert __main__.n_layer == 12 and not hasattr(__main__, 'n_layr')\n"
        "__main__.n_layer = 2\ndel __main__.n_head",
        "from __main__ import n_layer as depth\nn_layer = depth // 6",
        "g = globals()\ng |= {'n_layer': 2}",
        "me = __import__('sys').modules[__name__]\nme.__dict__.update(n_layer=2)",
        "from by_main import *",
        "with open('base.py') as f:\n    exec(f.read())",
        "f = open('base.py')\nexec(f.read())\nf.close()",
        "for key, value in {'n_layer': 2}.items():\n    globals()[key] = value",
        "exec(open('loop.py').read())",
        "from loop import *",
        "from math import *\nfrom math import pi\nn_layer = floor(e)",
        "from mis import n_layr as depth\nn_layer = depth",
        "from dataclasses import dataclass\n@dataclass\nclass Size:\n    depth: 'int' = 2\n"
        "n_layer = Size().depth",
        "\ufeffn_layer = 2",
        "exec(open('marked.py').read())",
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # as users write it
def test_a_file_runs_as_nanogpt_runs_it(tmp_path, text):
    written(tmp_path, "base.py", "n_layer = 2\n")
    written(tmp_path, "marked.py", "\ufeffn_layer = 2\n")
    written(tmp_path, "mis.py", "n_layr = 2\n")
    written(tmp_path, "by_main.py", "import __main__\n__main__.n_layer = 2\n")
    loop = "from math import pi\nfor i in range(3):\n    n_layer = i\n"
    written(tmp_path, "loop.py", f"{loop}with open(__file__) as f:\n    pass\n")
    main = sys.modules["__main__"]
    assert typed(parse_arguments([str(written(tmp_path, "a.py", text))])) == {"n_layer": 2}
    assert sys.modules["__main__"] is main


@pytest.mark.parametrize(
    "text", ["from mis import n_layr", "from mis import *", "from more import *"]
)
def test_a_misspelt_key_is_refused_where_it_is_imported(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    written(tmp_path / "configs", "mis.py", "import numpy as np\nn_layr = np.int64(2)\n")
    written(tmp_path / "configs", "more.py", "from mis import n_layr\n")
    words = "a.py: n_layr: unknown key; did you mean 'n_layer'?"
    assert words in refusal(written(tmp_path / "configs", "a.py", f"{text}\n"))
    package = text.replace("from ", "from configs.")
    if "more" not in text:
        assert words in refusal(written(tmp_path, "a.py", f"{package}\n"))
        written(tmp_path / "configs", "mis.py", "n_layer = 7\n")  # each file's own, not cached
        now = package.replace("layr", "layer")
        assert config(written(tmp_path, "a.py", f"{now}\n")).n_layer == 7


@pytest.mark.parametrize("name", ["a.toml", "a.json", "a.yaml"])
def test_a_file_may_begin_with_a_mark(tmp_path, name):
    text = SAME[name]
    assert config(written(tmp_path, name, f"\ufeff{text}")).n_layer == 4


def test_what_is_no_name_is_no_key(tmp_path):
    file = written(tmp_path, "a.py", "globals().update({3: 4, (1, 2): 5})\nn_layer = 2\n")
    assert typed(parse_arguments([str(file)])) == {"n_layer": 2}


def test_a_loop_over_globals_changes_what_it_says(tmp_path):
    text = (
        "for _name in list(globals()):\n    if _name.endswith('_iters') and globals()[_name]:\n"
        "        globals()[_name] //= 10\n"
        "vars(parametrization).update(mode='muP')\nsetattr(parametrization, 'base_n_embd', 64)\n"
    )
    found = config(written(tmp_path, "a.py", text))
    assert (found.max_iters, found.warmup_iters, found.eval_iters) == (60000, 200, 20)
    assert (found.parametrization.mode, found.parametrization.base_n_embd) == ("muP", 64)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("n_layers = 4", "n_layers: unknown key; did you mean 'n_layer'?"),
        ("def seed(): return 1", "expected a whole number"),
        ("parametrization = dict(mod='SP')", "did you mean 'parametrization.mode'"),
        ("n_layer = 'four'", "n_layer=four: expected a whole number"),
    ],
)
@pytest.mark.parametrize("way", ["exec(open('base.py').read())", "from base import *"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # as users write it
def test_a_base_file_is_refused_as_the_file_itself_would_be(tmp_path, base, words, way):
    written(tmp_path, "base.py", f"import time\nfrom math import sqrt\n{base}\n")
    message = refusal(written(tmp_path, "a.py", f"from math import pi\n{way}\n"))
    assert words in message
    assert "a.py: " in message


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.py", "n_layers = 4\n", "a.py: n_layers: unknown key; did you mean 'n_layer'?"),
        ("a.py", "i = 3\nfor i in range(3):\n    n_layer = 1 + i\n", "a.py: i: unknown key"),
        ("a.py", "hidden = 3", "a name of your own begins with _"),
        ("a.py", "n_layer = 1\nraise GeneratorExit\n", "a.py, line 2: GeneratorExit"),
        ("a.py", "\nraise type('Stop', (BaseException,), {})('now')\n", "a.py, line 2: Stop: now"),
        ("a.py", "parametrization.mod = 'SP'\n", "did you mean 'parametrization.mode'"),
        ("a.py", "parametrization = 'muP'\n", "parametrization: unknown key"),
        ("a.py", "\nn_layer = 1 / 0\n", "a.py, line 2: ZeroDivisionError: division by zero"),
        ("a.py", "def f():\n    return {}['k']\n\nn_layer = f()\n", "a.py, line 2: KeyError: 'k'"),
        ("a.py", "import no_such_module\n", "a.py, line 1: ModuleNotFoundError"),
        ("a.py", "n_layer = 4\nexit(3)\n", "a.py, line 2: SystemExit: 3"),
        ("a.py", "n_layer = 4\nn_head =\n", "a.py, line 2: SyntaxError"),
        ("a.py", "n_layer = 'four'\n", "a.py: n_layer=four: expected a whole number"),
        ("a.py", "dataset = 5\n", "a.py: dataset=5: expected text"),
        ("a.py", "dropout = 2\n", "a.py: dropout=2.0: must be below 1"),
        ("a.toml", "n_layer = \n", "not valid TOML"),
        ("a.toml", "n_layer = 2\nn_layer = 3\n", "TOML"),
        ("a.toml", "learning_rate = nan\n", "a.toml: learning_rate=nan"),
        ("a.toml", "out_dir = 2020-01-01\n", "expected text"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[1]", "found list"),
        ("a.json", "3", "found int"),
        ("a.json", '{"learning_rate": Infinity}', "learning_rate=inf"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.yaml", "n_layer: [1,\n", "not valid YAML"),
        ("a.yaml", "- 1\n", "found list"),
        ("a.yaml", "out_dir: 2024-13-45\n", "not valid YAML"),
        ("a.yaml", "1: 2\n", "1: unknown key"),
        ("a.yaml", "n_layer: 2\nn_layer: 3\n", "'n_layer' stands twice"),
        ("a.yaml", "parametrization: {mode: SP, mode: muP}\n", "'mode' stands twice"),
        ("a.json", '{"n_layer": 2, "n_layer": 3}', "'n_layer' stands twice"),
        ("a.toml", "parametrization.mode = 'SP'\n'parametrization.mode' = 'muP'\n", "twice"),
        ("a.yaml", "&x\nparametrization: *x\n", "nested too deeply"),
        ("a.yaml", "a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("a.txt", "", "config files end in '.py'"),
        ("config", "", "config files end in"),
        ("a.txt", "", "'.yaml' or '.yml'"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, monkeypatch, name, text, words):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, name, text)
    message = refusal(name)
    assert message.startswith(name)
    assert words in message


def test_missing_and_unreadable_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "train_small.py", "n_layer = 1\n")
    assert "did you mean 'train_small.py'" in refusal("train_smal.py")
    (tmp_path / "folder.py").mkdir()
    assert "no such config file" in refusal("folder.py")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    assert "UTF-8" in refusal("latin.py")


def test_flags_around_a_file_are_two_sources(tmp_path):
    file = written(tmp_path, "a.py", "n_layer = 1\n")
    assert config("--max_iters=5", file, "--max_tokens=10").max_tokens == 10
    assert "the command line sets both max_iters and max_tokens" in refusal(
        file, "--max_iters=5", "--max_tokens=10"
    )
    assert "a.py sets both" in refusal(written(tmp_path, "a.py", "min_lr = 0\nmin_lr_frac = 0\n"))


# --- from Python -------------------------------------------------------------------------------


def test_a_config_is_loaded_from_python_as_train_reads_it(tmp_path):
    file = written(tmp_path, "small.toml", "n_layer = 3\nmax_iters = 7\n")
    assert load_config() == ExperimentConfig()
    assert load_config(file, "--max_tokens=1e6") == config(file, "--max_tokens=1e6")
    found = load_config("--n_layer=2", file, "--seed=9", seed=4, parametrization={"mode": "MuP"})
    assert (found.n_layer, found.seed, found.parametrization.mode) == (3, 4, "muP")
    assert load_config(file, max_tokens=1e6).max_iters is None  # one quantity, said anew


@pytest.mark.parametrize(
    ("given", "overrides", "says"),
    [
        ((), {"n_layers": 2}, "load_config: n_layers: unknown key; did you mean 'n_layer'?"),
        ((), {"n_layer": 0}, "load_config: n_layer=0: must be at least 1"),
        (("--n_layer",), {}, "--n_layer: a flag needs a value"),
        (("n_layer=2",), {}, "n_layer=2: config files end in"),
        ((), {"max_iters": 5, "max_tokens": 10}, "load_config sets both max_iters and max_tokens"),
    ],
)
def test_what_train_refuses_is_refused_from_python(given, overrides, says):
    with pytest.raises(UserError) as caught:
        load_config(*given, **overrides)
    assert str(caught.value).startswith(says)


def test_the_example_of_load_config_is_true():
    assert doctest.testmod(sources).attempted > 0
    assert doctest.testmod(sources).failed == 0


# --- the record and the help -------------------------------------------------------------------


def test_what_was_typed_is_kept_as_plain_values(tmp_path):
    file = written(tmp_path, "a.py", "from pathlib import Path as _P\nn_layer = 3\nbeta1 = 0.5\n")
    sources = parse_arguments([str(file), "--n_layer=1e1", "--parametrization.mode=MuP"])
    assert typed(sources) == {"n_layer": "1e1", "beta1": 0.5, "parametrization.mode": "MuP"}
    assert typed([Source("x", {"out_dir": Path("a")})]) == {"out_dir": repr(Path("a"))}


def test_the_help_names_every_key_its_default_and_its_meaning():
    text = help_text("usage")
    for name, key in all_fields().items():
        line = next(line for line in text.splitlines() if line.strip().startswith(f"--{name}="))
        assert f"={key.default}" in line
        assert key.doc in line
