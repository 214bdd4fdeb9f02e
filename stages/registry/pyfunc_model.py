"""The registered model as MLflow stores it: this file as code, the weights as safetensors, and no pickle anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from stages.registry.serving import MODEL_FOLDER, Served


class PretextModel(PythonModel):
    """`predict` gives features; with the parameter `generate`, what the model writes."""

    def load_context(self, context: Any) -> None:
        """Open the weights."""
        options = context.model_config or {}
        self._served = Served(Path(context.artifacts[MODEL_FOLDER]), options["feature"], options["every"])

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Features float32 `[rows, width]` of a frame with the columns of the signature, or a list of texts. What does
        not fit is an MlflowException, which a server answers as a bad request."""
        given = params or {}
        try:
            rows = self._served.rows(model_input)
            if given.get("generate"):
                return self._served.generate(rows, given["tokens"], given["temperature"], given["seed"])
            return self._served.features(rows, given.get("feature"))
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


set_model(PretextModel())
