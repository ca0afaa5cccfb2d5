"""Configuration: every setting round-trips, every mistake names its key path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infuser.models
from infuser.config import dump, merge, override, parse, read_yaml, resolve
from infuser.errors import InfuserError
from infuser.studies.audit_settings import audit_settings
from infuser.studies.detection_benchmark import benchmark_settings
from infuser.studies.presets import PRESETS, commented, settings_of
from infuser.studies.study import Experiment, Victim
from infuser.studies.sweep import read_sweep
from infuser.types import Recipe


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_round_trips_through_yaml(name: str, tmp_path: Path) -> None:
    chosen = settings_of(name)
    path = tmp_path / "config.yaml"
    path.write_text(dump(chosen))
    assert parse(type(chosen), read_yaml(path)) == chosen


def test_nested_settings_round_trip(tmp_path: Path) -> None:
    chosen = Experiment(seeds=(4, 5), victims=(Victim("mlp", {"hidden": [8]}, Recipe(lr=0.5)),), norm="l2", radius=30.5)
    path = tmp_path / "config.yaml"
    path.write_text(dump(chosen))
    assert parse(Experiment, read_yaml(path)) == chosen


def test_the_commented_configuration_names_the_words_that_a_setting_may_take() -> None:
    text, _ = commented("digits")
    for line in (
        "# what the directions are solved with. One of: ekfac, kfac, identity.\ncurvature: ekfac",
        "null takes the direction of the influence. One of: last_epoch, half, scratch, null.\nunrolled: null",
        "# what is retrained. Any of: last_epoch, half, scratch.\nregimes:",
        "  optimizer: sgd  # One of: sgd, adamw.",
        "  kind: relative  # One of: ",
    ):
        assert line in text
    assert "# number of test documents, each with a random target that is not its clean prediction.\nprobes: 20" in text


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_commented_configuration_is_the_preset_and_explains_every_setting(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text, command = commented(name)
    path.write_text(text)
    assert command == "run"
    assert settings_of(str(path)) == settings_of(name)
    _every_setting_is_explained(text)


@pytest.mark.parametrize(
    ("name", "read", "what", "changes", "command"),
    [
        ("audit", audit_settings, "folder:PATH", [], "audit"),
        ("audit-texts", audit_settings, "text:PATH", ["model=PATH"], "audit"),
        ("detection", benchmark_settings, "digits", [], "benchmark detection"),
    ],
)
def test_audits_and_benchmarks_can_be_written_down_too(
    name: str, read: Callable[..., Any], what: str, changes: list[str], command: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    text, takes = commented(name)
    path.write_text(text)
    assert takes == command
    assert f"infuser {command} " in text
    assert read(str(path)) == read(what, changes)
    _every_setting_is_explained(text)
    path.write_text(text.replace("effort:", "efort:"))
    with pytest.raises(InfuserError, match="did you mean effort"):
        read(str(path))


def test_the_sweep_to_start_from_is_one(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    text, command = commented("sweep")
    path.write_text(text)
    assert command == "sweep"
    assert len(read_sweep(path).points) == 6
    path.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith(("grid", "  "))))
    with pytest.raises(InfuserError, match=r"no sweep.*infuser run"):
        read_sweep(path)


def test_another_model_comes_without_the_options_of_the_old_one() -> None:
    assert settings_of("digits").model_options == {"width": 16}
    assert settings_of("digits", ["model=mlp"]).model_options == {}
    assert settings_of("digits", ["model=mlp", "model_options.hidden=[8]"]).model_options == {"hidden": [8]}
    assert settings_of("digits", ["k=5"]).model_options == {"width": 16}


def test_an_unknown_start_is_an_error() -> None:
    with pytest.raises(InfuserError, match=r"to start from.*audit-texts"):
        commented("audits")


def _every_setting_is_explained(text: str) -> None:
    lines = text.splitlines()
    top_level = [i for i, line in enumerate(lines) if line and line[0].isalpha()]
    assert top_level
    assert all(lines[i - 1].startswith("# ") for i in top_level)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recipe.lrr=0.1", r"unknown setting recipe\.lrr.*did you mean recipe\.lr\?"),
        ("radios=8", r"unknown setting radios.*did you mean radius\?"),
        ("recipe.lr=fast", r"recipe\.lr.*number"),
        ("recipe.optimizer=lion", r"recipe\.optimizer"),
        ("radius=0", "radius"),
        ("radius=256", "radius"),
        ("k=0", "k is out of range"),
        ("seeds=[1, 1]", "seeds is out of range.*distinct"),
        ("seeds=[-1]", "seeds is out of range"),
        ("probe_seed=-1", "probe_seed, seeds is out of range"),
        ("regimes=[]", "regimes is out of range"),
        ("regimes=[half, half]", "regimes is out of range.*distinct"),
        ("limit=0", "limit is out of range"),
        ("fit_documents=0", "fit_documents is out of range"),
        ("pool=0.5", "the pool of post_edit is out of range"),
        ("radius=0.5", "holds no edit that 8 bits can store"),
        ("recipe.threads=0", "threads is out of range"),
        ("recipe.threads=100000", "1 to 1024, or null"),
        ("victims=[{model: mlp}, {model: mlp}]", "victims is out of range.*distinct"),
        ("controls=[clean_room]", "controls"),
        ("recipe.lr", "key=value"),
        ("recipe.lr.x=1", "a value, not a group"),
        ("k=[", "not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_by_its_path(setting: str, message: str) -> None:
    with pytest.raises(InfuserError, match=f"(?s){message}"):
        settings_of("digits", [setting])


def test_settings_are_laid_on_top_of_the_preset() -> None:
    chosen = settings_of("mnist", ["recipe.lr=0.5", "k=7"], "somewhere")
    assert (chosen.recipe.lr, chosen.recipe.epochs, chosen.k, chosen.data_folder) == (0.5, 5, 7, "somewhere")


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(InfuserError, match="digits, mnist, cifar10"):
        settings_of("digit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "must hold a mapping"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]\n", "not valid YAML"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_configuration_is_read_safely(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InfuserError, match=message):
        read_yaml(path)


def test_a_missing_or_huge_configuration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InfuserError, match="cannot read"):
        read_yaml(tmp_path / "none.yaml")
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"a" * 1_000_001)
    with pytest.raises(InfuserError, match="too large"):
        read_yaml(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_configuration_or_our_own_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "config.yaml"
    path.write_bytes(raw)
    try:
        values = read_yaml(path)
        parse(Experiment, values)
    except InfuserError:
        return
    assert isinstance(values, dict)


def test_code_runs_only_when_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets_for_config_test.py").write_text("def net(shape, n):\n    return (shape, n)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["elsewhere"])
    with pytest.raises(InfuserError, match="--allow-code"):
        resolve("my_nets_for_config_test:net", infuser.models)
    assert resolve("my_nets_for_config_test:net", infuser.models, allow_code=True)((1,), 2) == ((1,), 2)
    with pytest.raises(InfuserError, match="cannot import"):
        resolve("my_nets_for_config_test:nothing", infuser.models, allow_code=True)


def test_names_resolve_to_the_public_builders_alone() -> None:
    assert resolve("mlp", infuser.models) is infuser.models.mlp
    with pytest.raises(InfuserError, match=r"did you mean tiny_resnet\?"):
        resolve("tinyresnet", infuser.models)
    with pytest.raises(InfuserError, match=r"not in infuser\.models"):
        resolve("__builtins__", infuser.models)


def test_merge_and_override_leave_their_arguments_alone() -> None:
    base = {"recipe": {"lr": 0.1, "epochs": 2}}
    assert merge(base, {"recipe": {"lr": 0.2}}) == {"recipe": {"lr": 0.2, "epochs": 2}}
    assert override(base, ["recipe.epochs=3"]) == {"recipe": {"lr": 0.1, "epochs": 3}}
    assert base == {"recipe": {"lr": 0.1, "epochs": 2}}


@pytest.mark.parametrize("text", ["2024-13-45", "0x_", "[" * 3000, "!!python/object:os.system"])
def test_a_setting_that_yaml_stumbles_over_is_named(text: str) -> None:
    with pytest.raises(InfuserError, match="the value of k is not valid YAML"):
        override({}, [f"k={text}"])


@pytest.mark.parametrize("setting", ["recipe.epochs=true", "recipe.lr=true", "k=false", "seeds=[true]", "limit=true"])
def test_true_is_no_number(setting: str) -> None:
    where = setting.partition("=")[0]
    with pytest.raises(InfuserError, match=f"{where} is out of range.*no true or false"):
        settings_of("digits", [setting])
    settings_of("digits", ["model_options={bias: true}"])  # what a model takes is for the model to say
