"""Settings: every wrong value has one message."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from anndata import AnnData

import invatlas as ia
from invatlas.errors import SettingsError
from invatlas.settings import read_toml

WRONG: list[tuple[str, Any, str]] = [
    ("hidden", 1.5, r"hidden is 1\.5 \(float\); it takes int"),
    ("hidden", "128", r"hidden is '128' \(str\); it takes int"),
    ("hidden", True, r"hidden is True \(bool\); it takes int"),
    ("hidden", None, r"hidden is None"),
    ("hidden", 0, r"hidden is 0; it takes 1 to"),
    ("epochs", 0, r"epochs is 0; it takes at least 1\.$"),
    ("epochs", 2.0, r"epochs is 2\.0 \(float\); it takes int or nothing"),
    ("epochs", True, r"epochs is True \(bool\)"),
    ("minibatch_size", 1, r"minibatch_size is 1; it takes at least 2\.$"),
    ("technical_in_decoder", 1, r"technical_in_decoder is 1 \(int\); it takes bool"),
    ("dropout", 1.0, r"dropout is 1\.0; it takes 0 to 0\.95"),
    ("dropout", True, r"dropout is True \(bool\); it takes float"),
    ("held_out", False, r"held_out is False \(bool\); it takes float"),
    ("dropout", -0.1, r"dropout is -0\.1"),
    ("held_out", 0.6, r"held_out is 0\.6; it takes 0 to 0\.5"),
    ("learning_rate", 0.0, r"learning_rate is 0\.0"),
    ("learning_rate", float("nan"), r"learning_rate is nan"),
    ("learning_rate", "fast", r"learning_rate is 'fast' \(str\); it takes float"),
    ("gradient_norm", float("inf"), r"gradient_norm is inf"),
    ("divergence_weight", float("inf"), r"divergence_weight is inf"),
    ("classification_weight", -1.0, r"classification_weight is -1"),
    ("dependence_weight", float("nan"), r"dependence_weight is nan"),
    ("invariant_latents", 0, r"invariant_latents is 0; it takes 1 to"),
    ("spurious_latents", -1, r"spurious_latents is -1; it takes 0 to"),
    ("genes", -1, r"genes is -1; it takes at least 0"),
    ("patience", 0, r"patience is 0"),
    ("seed", -1, r"seed is -1; it takes 0 to"),
    ("seed", 2**64, r"seed is 18446744073709551616"),
    ("likelihood", "zinb", r"likelihood is 'zinb'; it takes negative_binomial, poisson, gaussian"),
    ("likelihood", 3, r"likelihood is 3 \(int\); it takes str"),
    ("prior", "flow", r"prior is 'flow'; it takes factorised"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=lambda v: repr(v)[:20])
def test_a_wrong_value_is_refused_by_name_value_and_what_is_allowed(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        ia.Settings(**{name: value})
    with pytest.raises(SettingsError, match=message):
        ia.Settings().changed({name: value})


def test_an_unknown_name_is_refused_and_the_known_named() -> None:
    with pytest.raises(SettingsError, match=r"Unknown setting batch_size; .*minibatch_size"):
        ia.Settings().changed({"batch_size": 3})


def test_defaults_are_allowed_and_come_back_from_plain_values() -> None:
    settings = ia.Settings()
    assert ia.Settings().changed(asdict(settings)) == settings
    assert ia.Settings(spurious_latents=0, epochs=None, held_out=0).held_out == 0.0


def test_a_whole_number_is_a_float_where_a_float_is_asked_for() -> None:
    found = ia.Settings(dependence_weight=3)
    assert type(found.dependence_weight) is float
    assert found == ia.Settings(dependence_weight=3.0)


def test_changed_leaves_the_original_alone() -> None:
    settings = ia.Settings()
    assert settings.changed({"hidden": 7}).hidden == 7
    assert settings == ia.Settings()


def test_every_setting_is_documented() -> None:
    for field in fields(ia.Settings):
        assert field.name in (ia.Settings.__doc__ or ""), field.name


def test_toml_is_read_and_what_is_none_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('biological = ["a", "b"]\nhidden = 5\n', encoding="utf-8")
    assert read_toml(file) == {"biological": ["a", "b"], "hidden": 5}
    file.write_text("hidden = = 5")
    with pytest.raises(SettingsError, match=r"run\.toml is no TOML"):
        read_toml(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"run\.toml is no TOML"):
        read_toml(file)
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(SettingsError, match=str(tmp_path)):
        read_toml(tmp_path)


def test_a_setting_that_does_not_exist_is_a_mistake_like_others() -> None:
    for make in (lambda: ia.Settings(epoch=1), lambda: ia.Settings().changed({"epoch": 1})):
        with pytest.raises(SettingsError, match=r"Unknown setting epoch; .* Did you mean 'epochs'"):
            make()
    assert "epochs" in inspect.signature(ia.Settings).parameters
    assert pickle.loads(pickle.dumps(ia.Settings(epochs=3))) == ia.Settings(epochs=3)


def test_settings_of_another_kind_are_refused(study: AnnData) -> None:
    for fit in (ia.fit, ia.fit_seeds):
        with pytest.raises(SettingsError, match=r"settings is \{'epochs': 1\} \(dict\); it takes"):
            fit(study, ["cell_type"], settings={"epochs": 1})
