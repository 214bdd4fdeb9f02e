"""The built-in digits: all of them, as scikit-learn has them, or one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.modalities.image import pictures
from stages.params import UserError
from stages.readers import digits


def test_the_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    true, labels = load_digits(return_X_y=True)
    options = digits.Options()
    found = [record for part in digits.plan("requirements.lock", options) for record in digits.read(part, options)]
    assert [record.label for record in found] == [str(label) for label in labels]
    assert len({record.source for record in found}) == 1797
    for record, picture in zip(found[::50], true[::50], strict=True):
        pixels = pictures.decode(record.payload["image"], 8, 8, 1)
        assert (pixels.ravel() == np.rint(picture * 255 / 16)).all()


def test_other_digits_and_none_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sentence in (("missing", "cannot be read"), ("empty", "these are not the digits")):
        digits.content.cache_clear()
        (tmp_path / "empty").touch()
        monkeypatch.setattr(digits, "_FILE", str(tmp_path / name))
        with pytest.raises(UserError, match=f"{sentence}.*install requirements.lock"):
            digits.plan("requirements.lock", digits.Options())
    digits.content.cache_clear()
