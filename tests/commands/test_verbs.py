"""The verbs: found by name, light to ask for help, and refusing in one line of our words."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from types import SimpleNamespace

import click
import pytest
from tiny import ROOT, RUN, flags, run_python, spec_maker

from nanoscale.__main__ import main
from nanoscale.commands import status, watch
from nanoscale.commands.main import TASKS, VERBS, dispatch, program
from nanoscale.commands.run import exit_code
from nanoscale.errors import UserError
from nanoscale.store.folder import RunFolder
from nanoscale.store.resume import open_folder


def command(verb: str) -> click.Command:
    found = program.get_command(click.Context(program), verb)
    assert found is not None
    return found


def leaves(verb: str) -> list[click.Command]:
    """The commands that do something: a verb, or a group's subcommands."""
    found = command(verb)
    return list(found.commands.values()) if isinstance(found, click.Group) else [found]


def test_every_verb_is_one_module_of_the_folder():
    folder = ROOT / "nanoscale" / "commands"
    modules = {file.stem.replace("_", "-") for file in folder.glob("*.py")}
    assert set(VERBS) <= modules


def test_the_help_lists_every_verb_by_task(capsys):
    assert dispatch(["--help"]) == 0
    text = capsys.readouterr().out
    for task, verbs in TASKS.items():
        section = text.split(f"{task}:\n", 1)[1].split("\n\n", 1)[0]
        assert re.findall(r"^  (\S+)", section, flags=re.MULTILINE) == list(verbs)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_has_a_sentence_per_option_and_two_examples(verb):
    for leaf in leaves(verb):
        assert leaf.help
        for parameter in leaf.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, parameter.opts
                assert parameter.help.endswith("."), parameter.opts
        assert len(leaf.examples) == 2, leaf.name
        assert all("nanoscale " in example for example in leaf.examples)


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_well_and_says_how_it_is_called(verb, capsys):
    for flag in ("--help", "-h"):
        assert dispatch([verb, flag]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: nanoscale {verb} ")


def test_no_verb_is_bad_input_and_help_is_not(capsys):
    assert dispatch([]) == 2
    without = capsys.readouterr().out
    assert dispatch(["help"]) == 0
    assert capsys.readouterr().out == without


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["fti"], "fti: unknown verb; did you mean 'fit'?"),
        (["zzz"], "zzz: unknown verb; see --help"),
        (["--verison"], "--verison"),
        (["status", "--outptu_root=x"], "x: unknown option; did you mean '--output_root'?"),
        (["status", "-x"], "-x: unknown option; see nanoscale status --help"),
        (["study"], "nanoscale study: FILE is missing; see nanoscale study --help"),
        (["study", "a", "b"], "nanoscale study: b: one argument too many"),
        (["study", "a", "--workers"], "--workers: a value is missing"),
        (["study", "a", "--dry-run=1"], "--dry-run=1: the option takes no value"),
        (["study", "a", "--workers=x"], "--workers=x: expected a number"),
        (["completion", "tcsh"], "shell=tcsh: not known; choose 'bash', 'zsh' or 'fish'"),
        (["params", "--n_layr=2"], "--n_layr: unknown key; did you mean 'n_layer'?"),
        (["data", "prepare"], "NAME is missing"),
    ],
)  # fmt: skip
def test_a_usage_error_is_one_line(typed, words):
    with pytest.raises(UserError) as refusal:
        dispatch(typed)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("state", "code"), [("COMPLETE", 0), ("WAITING", 130), ("DIVERGED", 1), ("FAILED", 1)]
)
def test_a_runs_end_is_its_exit_code(state, code):
    assert exit_code(SimpleNamespace(status=state)) == code


def test_a_run_that_another_process_trains_may_come_back(data_root, tmp_path):
    folder = open_folder(tmp_path / "run", spec_maker(RUN, data_root)(), resume=False)
    with folder.take():
        assert dispatch(["run", str(folder.path)]) == 130


@pytest.mark.parametrize(("status", "code"), [("identified", 0), ("not_identified", 3)])
def test_a_design_that_answers_no_question_is_undecided(monkeypatch, status, code):
    record = SimpleNamespace(status=status, summary=list, warnings=[], to_json=dict)
    monkeypatch.setattr("nanoscale.studies.designs.design_study", lambda *_: record)
    assert dispatch(["design", "x.csv"]) == code


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_a_study_with_runs_that_failed_is_a_failure(monkeypatch, tmp_path, ok, code):
    study = SimpleNamespace(ok=ok, name="x", output_root=tmp_path, verdict="")
    monkeypatch.setattr("nanoscale.experiments.Study.open", lambda folder: study)
    monkeypatch.setattr("nanoscale.studies.stages.run_study", lambda *_, **__: study)
    monkeypatch.setattr("nanoscale.experiments.ExperimentRunner.retry", lambda self, name: study)
    assert dispatch(["study", "x.toml"]) == code
    assert dispatch(["study", "x.toml", "--dry-run"]) == 0
    assert dispatch(["retry", "x", f"--output_root={tmp_path}"]) == code
    monkeypatch.setattr(watch, "open_study", lambda name, output_root: study)
    monkeypatch.setattr("nanoscale.experiments.watching.watch", lambda study: None)
    assert dispatch(["watch", "x"]) == code


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_loads_nothing_heavy(verb):
    code = (
        "import sys; from nanoscale.__main__ import main; "
        f"main([*{[verb] if verb else []!r}, '--help']); "
        "print({'torch', 'numpy', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "set()"


@pytest.mark.slow
def test_the_help_is_there_at_once():
    """Best of five, as others may compute: 0.3 s, Python's own start included."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        run_python("-m", "nanoscale", "--help")
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_and_completes(shell, capsys):
    assert dispatch(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_NANOSCALE_COMPLETE" in script
    environment = {
        "_NANOSCALE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "nanoscale stu",
        "COMP_CWORD": "stu" if shell == "fish" else "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from nanoscale.__main__ import main; main()"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)} | environment,
    )
    assert "study" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train con", "file,con"),
        ("train --n_l", "plain,--n_layer"),
        ("coord-check --wid", "plain,--widths"),
        ("study studies/qui", "file,studies/qui"),
        ("fit --la", "plain,--law"),
        ("compare one tw", "file,tw"),
        ("data prepare text --input mi", "file,mi"),
    ],
)
def test_files_keys_and_options_are_completed(words, said, monkeypatch, capsys):
    monkeypatch.setenv("_NANOSCALE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"nanoscale {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    with pytest.raises(SystemExit):
        dispatch([])
    assert said in capsys.readouterr().out.splitlines()


def test_a_path_begins_at_home_however_it_is_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "book.txt").write_text("once upon a time " * 20)
    assert main(["data", "prepare", "text", "--input=~/book.txt", "--out=~/book"]) == 0
    assert main(["data", "prepare", "text", "--input", "~/book.txt", "--out", "~/book"]) == 0
    assert (tmp_path / "book" / "train.bin").is_file()
    (tmp_path / "c.py").write_text("n_layer = 1\nn_head = 1\nn_embd = 8\n")
    assert main(["params", "~/c.py", "--dataset=~/book"]) == 0
    capsys.readouterr()
    assert main(["compare", "~/a,~/b", "~/c,~/d", "--json=~/out.json"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/a: no run folder")
    assert main(["status", "--output_root=~/x=y"]) == 0
    assert capsys.readouterr().out == f"no studies in {tmp_path}/x=y\n"


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(status.command, "callback", interrupt)
    assert main(["status"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("verb", ["train", "run"])
def test_how_threads_wait_is_chosen_before_torch_is_loaded(verb, desk):
    folder = RunFolder("out")
    if verb == "run":
        folder.create(spec_maker(RUN, desk / "data")())
    arguments = {"train": ["train", *flags(RUN)], "run": ["run", "out"]}[verb]
    code = f"""import os, sys
from nanoscale.experiments import machine
class Torch:
    def find_spec(self, name, *_):
        if name == "torch":
            os._exit(3 + (os.environ.get("OMP_WAIT_POLICY") == "chosen"))
sys.meta_path.insert(0, Torch())
machine.waiting = lambda threads: {{"OMP_WAIT_POLICY": "chosen"}}
from nanoscale.__main__ import main
main({arguments!r})"""
    assert run_python("-c", code).returncode == 4
