"""Models that fit and predict as in scikit-learn, on the platform: fit uploads and trains, predict serves and asks.

What an estimator makes there bears one name: its dataset, its model and, from the first `predict` on, its endpoint.
"""

import atexit
import inspect
import math
import re
import secrets
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, Self

from leptonai._client import Client, default_client
from leptonai._endpoints import CHUNK_ROWS, predictions, serve
from leptonai._errors import InvalidInput, LeptonError, NotFitted, NotFound
from leptonai._metrics import accuracy_score, r2_score
from leptonai._session import path
from leptonai._tabular import Columns, columns_of, is_missing, is_series, to_table
from leptonai._types import TrainingJob

FIRST_ANSWER = 120.0
"""Seconds that an endpoint may take to become ready."""

_TOLERANCE = 1e-6
"""scikit-learn's default `tol` of LinearRegression."""

_open: dict[str, Client] = {}


@atexit.register
def _close_all() -> None:
    """Endpoints that estimators have made end with the program: they would count against the plan's quota."""
    while _open:
        name, client = _open.popitem()
        try:
            client.endpoints.delete(name)
        except LeptonError:
            pass  # nobody is left to tell; the endpoint shows in `lepton endpoint list`


class Estimator:
    """Base of the estimators: not made itself.

    After `fit`: `model_version_` ("name@n"), `job_`, `feature_names_in_`, `n_features_in_` (and `classes_`). Its endpoint is
    deleted by `close()`, at the end of a `with` block, or when the program ends, unless `keep_endpoint`.
    """

    _task: ClassVar[str]
    _architecture: ClassVar[str]

    client: Client | None
    name: str | None
    verbose: bool | None
    keep_endpoint: bool
    seed: int
    accelerator: str

    model_version_: str
    job_: TrainingJob
    feature_names_in_: list[str]
    n_features_in_: int

    _name: str = ""
    _sent: tuple[str, ...] = ()
    _target: str = ""
    _serving: str = ""

    def fit(self, X: Any, y: Any) -> Self:
        """Trains on all rows. Fitting again makes a new version under the same names.

        X: Series (one feature), DataFrame, array or list. y: Series, array or list of as many rows.
        Raises InvalidInput for unequal lengths and missing values, InvalidData for what the platform refuses, JobFailed.
        """
        features, target = self._checked(X, y)
        client = self._client()
        self._name = self._name or self.name or f"{_kebab(type(self).__name__)}-{secrets.token_hex(4)}"
        sent = _sendable(features.names)
        wanted = target.names[0] if target.named else "target"
        self._target = wanted if _fits([*sent, wanted]) else _other_than(sent)
        data, filename = to_table([*sent, self._target], [*features.values, *target.values])
        version = client.datasets.upload(self._name, data, filename=filename)
        job = client.training_jobs.create(
            name=self._name,
            dataset=version.ref,
            task=self._task,
            target=self._target,
            output_model=self._name,
            features=sent,
            architecture=self._architecture,
            test_fraction=0.0,
            seed=self.seed,
            accelerator=self.accelerator,
            **self._spec(),
        )
        self.job_ = client.training_jobs.wait(job, progress=self.verbose)
        self.model_version_ = self.job_.model_version
        self.feature_names_in_ = features.names
        self.n_features_in_ = len(features.names)
        self._sent = tuple(sent)
        return self

    def predict(self, X: Any) -> Any:
        """One prediction a row: a Series with X's index for pandas, an array for numpy, else a list.

        The first time, an endpoint is made and waited for. Raises NotFitted, InvalidInput for other columns than in `fit`.
        """
        columns = self._matched(columns_of(X, "X"))
        return _as_given(X, [self._understood(answer) for answer in self._ask(columns)], columns, self._target)

    def close(self) -> None:
        """Deletes the endpoint, if there is one. `predict` makes it again."""
        if self._serving:
            self._serving = ""
            client = _open.pop(self._name, None) or self._client()
            try:
                client.endpoints.delete(self._name)
            except NotFound:
                pass

    def delete(self) -> None:
        """Deletes everything that it made on the platform: endpoint, model and dataset."""
        self.close()
        for resource in (self._client().models, self._client().datasets) if self._name else ():
            try:
                resource.delete(self._name)
            except NotFound:
                pass
        self._sent = ()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments that it was made with."""
        return {name: getattr(self, name) for name in self._param_names()}

    def set_params(self, **params: Any) -> Self:
        """Changes arguments; they hold from the next `fit` on."""
        names = self._param_names()
        for name, value in params.items():
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
                raise InvalidInput(f"{type(self).__name__} has no parameter {name!r}", hint)
            setattr(self, name, value)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value is not defaults[name].default]
        return f"{type(self).__name__}({', '.join(changed)})"

    @classmethod
    def _param_names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def _client(self) -> Client:
        return self.client or default_client()

    def _spec(self) -> dict[str, Any]:
        raise NotImplementedError

    def _understood(self, answer: Any) -> Any:
        if isinstance(answer, Mapping):
            answer = answer.get("prediction", answer.get(self._target))
        return answer[0] if isinstance(answer, list) and len(answer) == 1 else answer

    def _checked(self, X: Any, y: Any) -> tuple[Columns, Columns]:
        features, target = columns_of(X, "X"), columns_of(y, "y")
        if not features.rows or not features.names:
            raise InvalidInput("X is empty", "it takes at least one row and one column")
        if len(target.names) != 1:
            raise InvalidInput(f"y has {len(target.names)} columns", "it takes one: the values to predict")
        if features.rows != target.rows:
            raise InvalidInput(f"X has {features.rows} rows and y {target.rows}", "they must be of the same rows")
        _refuse_gaps(features, "X")
        _refuse_gaps(target, "y")
        self._check_target(target.values[0])
        return features, target

    def _check_target(self, values: Sequence[Any]) -> None:
        for index, value in enumerate(values):
            if not isinstance(value, int | float):
                hint = "regression predicts numbers; for classes there is la.MLPClassifier"
                raise InvalidInput(f"y[{index}] is {value!r:.40}, which is not a number", hint)

    def _ask(self, columns: Columns) -> list[Any]:
        if not columns.rows:
            return []
        self._serve()
        rows = [dict(zip(self._sent, row, strict=True)) for row in zip(*columns.values, strict=True)]
        return self._client()._session.flow(predictions(path("endpoints", self._name, "predict"), rows, CHUNK_ROWS))

    def _matched(self, columns: Columns) -> Columns:
        if not self._sent:
            raise NotFitted(f"this {type(self).__name__} was not fitted yet", "call fit(X, y) first")
        if not columns.names and not columns.rows:
            return columns
        if len(self._sent) == 1 and len(columns.names) == 1:
            wanted = columns
        elif columns.named:
            for name in self.feature_names_in_:
                if name not in columns.names:
                    near = get_close_matches(name, columns.names, n=1)
                    hint = (
                        f"is {near[0]!r} meant to be it?"
                        if near
                        else f"it takes the columns of fit: {', '.join(self.feature_names_in_[:20])}"
                    )
                    raise InvalidInput(f"X lacks the column {name!r}", hint)
            surplus = [name for name in columns.names if name not in self.feature_names_in_]
            if surplus:
                hint = f"pass X[{self.feature_names_in_[:20]!r}]"
                raise InvalidInput(f"X has the column {surplus[0]!r}, which fit has not seen", hint)
            order = [columns.names.index(name) for name in self.feature_names_in_]
            values = [columns.values[at] for at in order]
            wanted = Columns(list(self.feature_names_in_), values, columns.rows, True, columns.index, columns.array)
        elif len(columns.names) != len(self._sent):
            hint = f"fit has seen {len(self._sent)}: {', '.join(self.feature_names_in_[:20])}"
            raise InvalidInput(f"X has {len(columns.names)} columns", hint)
        else:
            wanted = columns
        _refuse_gaps(wanted, "X")
        return wanted

    def _serve(self) -> None:
        """Has the endpoint serve the version that was fitted last."""
        if self._serving == self.model_version_:
            return
        client = self._client()
        if not self.keep_endpoint:
            _open[self._name] = client
        try:
            client._session.flow(serve(self._name, self.model_version_, moved=bool(self._serving), timeout=FIRST_ANSWER))
        except LeptonError as error:
            if getattr(error, "status", 0) == 409 and not self._serving:
                _open.pop(self._name, None)  # it is somebody else's: leave it alone
            else:
                self._serving = self._serving or "?"
            raise
        self._serving = self.model_version_


class _Classifier(Estimator):
    """An estimator of classes: texts, whole numbers or booleans."""

    classes_: list[Any]
    _labels: Mapping[str, Any]

    def score(self, X: Any, y: Any) -> float:
        """Accuracy on these rows, 0 to 1."""
        return accuracy_score(y, self.predict(X))

    def predict_proba(self, X: Any) -> Any:
        """A row of probabilities a row of X, in the order of `classes_`; an array for numpy and pandas, else lists."""
        columns = self._matched(columns_of(X, "X"))
        rows = [self._odds(answer) for answer in self._ask(columns)]
        return sys.modules["numpy"].array(rows).reshape(-1, len(self.classes_)) if columns.array else rows

    def _odds(self, answer: Any) -> list[float]:
        told = answer.get("probabilities") if isinstance(answer, Mapping) else None
        if not isinstance(told, Mapping):
            raise LeptonError(f"the endpoint answered {answer!r:.80} where probabilities were expected")
        known = {self._class(name): value for name, value in told.items()}
        return [float(known.get(value, 0.0)) for value in self.classes_]

    def _check_target(self, values: Sequence[Any]) -> None:
        for index, value in enumerate(values):
            if not isinstance(value, str | int | float):
                raise InvalidInput(f"y[{index}] is {value!r:.40}", "a class is a text, a number or a boolean")
        kinds = {str if isinstance(value, str) else float for value in values}
        if len(kinds) > 1:
            raise InvalidInput("y holds texts and numbers", "make all classes texts, or all numbers")
        classes = sorted(set(values))
        if len(classes) < 2:
            raise InvalidInput(f"y has one class only, {classes[0]!r}", "it takes rows of at least two")
        self.classes_ = classes
        self._labels = {**{str(value): value for value in classes}, **{_label(value): value for value in classes}}

    def _understood(self, answer: Any) -> Any:
        return self._class(super()._understood(answer))

    def _class(self, told: Any) -> Any:
        """A class as it was given to fit, of how the platform writes it."""
        return self._labels.get(told if isinstance(told, str) else _label(told), told)


class _Regressor(Estimator):
    def score(self, X: Any, y: Any) -> float:
        """R² on these rows: 1 is perfect, 0 no better than the mean."""
        return r2_score(y, self.predict(X))

    def _understood(self, answer: Any) -> Any:
        answer = super()._understood(answer)
        if not isinstance(answer, int | float):
            raise LeptonError(f"the endpoint answered {answer!r:.80} where a number was expected")
        return float(answer)


class LinearRegression(_Regressor):
    """Least squares with an intercept, solved by L-BFGS in double precision: agrees with scikit-learn's to 1e-6.

    As there (`tol`), directions of the features that are shorter than 1e-6 of the longest carry nothing: scale columns that differ so much.

    epochs: at most so many rounds of the solver. name: of dataset, model and endpoint (default: linear-regression-<8 hex>).
    verbose: True or False forces or forbids the progress bar. keep_endpoint: leave the endpoint running when the program ends.
    """

    _task = "regression"
    _architecture = "linear"

    def __init__(
        self,
        *,
        epochs: int = 100,
        seed: int = 0,
        accelerator: str = "cpu",
        name: str | None = None,
        client: Client | None = None,
        verbose: bool | None = None,
        keep_endpoint: bool = False,
    ) -> None:
        self.epochs = epochs
        self.seed = seed
        self.accelerator = accelerator
        self.name = name
        self.client = client
        self.verbose = verbose
        self.keep_endpoint = keep_endpoint

    def _spec(self) -> dict[str, Any]:
        return {
            "params": {"tolerance": _TOLERANCE},
            "epochs": self.epochs,
            "optimizer": "lbfgs",
            "double_precision": True,
            "weight_decay": 0.0,
        }


class LogisticRegression(_Classifier):
    """A linear classifier, solved by L-BFGS in double precision. `weight_decay` keeps weights small where classes part cleanly.

    The other arguments are LinearRegression's.
    """

    _task = "classification"
    _architecture = "linear"

    def __init__(
        self,
        *,
        epochs: int = 100,
        weight_decay: float = 0.0,
        seed: int = 0,
        accelerator: str = "cpu",
        name: str | None = None,
        client: Client | None = None,
        verbose: bool | None = None,
        keep_endpoint: bool = False,
    ) -> None:
        self.epochs = epochs
        self.weight_decay = weight_decay
        self.seed = seed
        self.accelerator = accelerator
        self.name = name
        self.client = client
        self.verbose = verbose
        self.keep_endpoint = keep_endpoint

    def _spec(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "optimizer": "lbfgs", "double_precision": True, "weight_decay": self.weight_decay}


class _MLP(Estimator):
    _architecture = "mlp"

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float | None = None,
        optimizer: str = "adamw",
        weight_decay: float | None = None,
        early_stopping: int | None = None,
        validation_fraction: float | None = None,
        seed: int = 0,
        accelerator: str = "cpu",
        name: str | None = None,
        client: Client | None = None,
        verbose: bool | None = None,
        keep_endpoint: bool = False,
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.accelerator = accelerator
        self.name = name
        self.client = client
        self.verbose = verbose
        self.keep_endpoint = keep_endpoint

    def _spec(self) -> dict[str, Any]:
        names = ("epochs", "batch_size", "learning_rate", "optimizer", "weight_decay", "early_stopping", "validation_fraction")
        params = {"hidden": list(self.hidden), "activation": self.activation, "dropout": self.dropout}
        return {"params": params, **{name: getattr(self, name) for name in names}}


class MLPClassifier(_MLP, _Classifier):
    """Fully connected layers of widths `hidden` that tell classes apart.

    learning_rate None: the optimizer's default. early_stopping: epochs without improvement (on `validation_fraction` of the rows)
    after which training stops. The other arguments are LinearRegression's.
    """

    _task = "classification"


class MLPRegressor(_MLP, _Regressor):
    """Fully connected layers of widths `hidden` that predict a number. The arguments are MLPClassifier's."""

    _task = "regression"


def _refuse_gaps(columns: Columns, what: str) -> None:
    for name, values in zip(columns.names, columns.values, strict=True):
        for index, value in enumerate(values):
            if is_missing(value):
                where = f"{what}[{index}]" if len(columns.names) == 1 else f"{what}[{index}][{name!r}]"
                raise InvalidInput(f"{where} is missing (NaN)", "drop or fill such rows first, e.g. with dropna() or fillna()")
            if isinstance(value, float) and math.isinf(value):
                raise InvalidInput(f"{what}[{index}] ({name}) is infinite", "use finite numbers")
            if not isinstance(value, str | int | float):
                raise InvalidInput(f"{what}[{index}] ({name}) is {type(value).__name__}", "it takes numbers, texts and booleans")


def _as_given(X: Any, values: list[Any], columns: Columns, name: str) -> Any:
    if columns.index is not None or is_series(X):
        return sys.modules["pandas"].Series(values, index=columns.index, name=name)
    return sys.modules["numpy"].array(values) if columns.array else values


def _label(value: Any) -> str:
    """A class as the platform writes it; 1.0 is the 1 that it may come back as."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _fits(names: Sequence[str]) -> bool:
    """Whether column names survive files and SQL: printable, trimmed, different from each other also without regard to case."""
    printable = all(n and n == n.strip() and len(n) <= 200 and all(unicodedata.category(c)[0] != "C" for c in n) for n in names)
    return printable and len({name.casefold() for name in names}) == len(names)


def _sendable(names: Sequence[str]) -> list[str]:
    return list(names) if _fits(names) else [f"x{index}" for index in range(len(names))]


def _other_than(names: Sequence[str]) -> str:
    taken = {name.casefold() for name in names}
    return next(name for name in ("target", "y", *(f"target_{n}" for n in range(len(names)))) if name not in taken)
