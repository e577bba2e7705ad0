"""The results of every call, field by field as in the REST API. Times are aware datetimes in UTC, sizes are bytes.

Names such as "wdbc@2" mean version 2 of wdbc. States, tasks and roles are the API's lower-case words.
"""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from decimal import Decimal
from typing import Any

from leptonai._errors import Violation
from leptonai._record import Record, html_table, record


@record
class Problem(Record):
    """Why a resource failed."""

    code: str = ""
    detail: str = ""
    errors: tuple[Violation, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.detail


@record
class Money(Record):
    """An exact amount; `micros` are millionths of one unit of the currency."""

    currency: str = ""
    micros: int = 0

    @property
    def amount(self) -> Decimal:
        """In units of the currency."""
        return Decimal(self.micros) / 1_000_000

    def __str__(self) -> str:
        digits = f"{self.amount:.6f}".rstrip("0")
        whole, _, part = digits.partition(".")
        return f"{whole}.{part.ljust(2, '0')} {self.currency}".strip()


@record
class Resources(Record):
    """What a job or replica needs. `cpu_millis` are thousandths of a core."""

    accelerator: str = ""
    count: int = 0
    memory_bytes: int = 0
    cpu_millis: int = 0

    def __str__(self) -> str:
        parts = [
            f"{self.count} {self.accelerator}" if self.accelerator else "",
            f"{self.memory_bytes >> 20} MiB" if self.memory_bytes else "",
        ]
        return ", ".join(part for part in parts if part)


@record
class Artifact(Record):
    """A stored file. `digest` is "sha256:" and 64 hexadecimal digits."""

    digest: str = ""
    size_bytes: int = 0
    path: str = ""
    media_type: str = ""

    def __str__(self) -> str:
        return self.path or self.digest


# -- datasets -------------------------------------------------------------------------------------------------------------------


@record
class Dataset(Record):
    """A name under which immutable versions are kept. `kind`: "table" or "images"."""

    name: str = ""
    kind: str = ""
    latest_version: int = 0
    description: str = ""
    create_time: datetime | None = None
    workspace: str = ""


@record
class Column(Record):
    """A typed column: double, integer, boolean, string, timestamp or image."""

    name: str = ""
    type: str = ""
    nullable: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.type}{'?' if self.nullable else ''}"


@record
class Split(Record):
    """Part of a version's rows: "all", or "train", "validation" and "test"."""

    name: str = ""
    rows: int = 0
    file: Artifact | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.rows}"


@record
class Lineage(Record):
    """Where a version came from: an "upload", a "transform" of `source` by `steps`, or a "prediction" of `source` by `model`."""

    kind: str = ""
    source: str = ""
    steps: tuple[Any, ...] = ()
    file_name: str = ""
    upload: Artifact | None = None
    model: str = ""
    batch_prediction: str = ""

    def __str__(self) -> str:
        if self.kind == "prediction":
            return f"prediction of {self.source} by {self.model}"
        steps = ", ".join(next(iter(step)) for step in self.steps if isinstance(step, Mapping) and step)
        return f"transform of {self.source}: {steps}" if self.kind == "transform" else f"{self.kind} {self.file_name}".strip()


@record
class DatasetVersion(Record):
    """One immutable version. `state`: "processing", "ready" or "failed" (then `error` says why)."""

    dataset: str = ""
    number: int = 0
    state: str = ""
    kind: str = ""
    rows: int = 0
    size_bytes: int = 0
    columns: tuple[Column, ...] = ()
    splits: tuple[Split, ...] = ()
    notices: tuple[str, ...] = ()
    lineage: Lineage | None = None
    error: Problem | None = None
    create_time: datetime | None = None
    ready_time: datetime | None = None
    workspace: str = ""

    @property
    def ref(self) -> str:
        """As other calls name it: "wdbc@2"."""
        return f"{self.dataset}@{self.number}"


@record
class Preview(Record):
    """First rows, each a dict by column name."""

    columns: tuple[Column, ...] = ()
    rows: tuple[Any, ...] = ()

    def _repr_html_(self) -> str:
        names = [column.name for column in self.columns]
        return html_table([str(column) for column in self.columns], ([row.get(name) for name in names] for row in self.rows))


@record
class ValueCount(Record):
    """A value and how often it occurs."""

    value: str = ""
    count: int = 0

    def __str__(self) -> str:
        return f"{self.value} {self.count}"


@record
class ColumnProfile(Record):
    """What is in a column. Figures of numbers are None for other types; `histogram` has ten bins from `min` to `max`."""

    name: str = ""
    type: str = ""
    nulls: int = 0
    nans: int = 0
    distinct: int = 0
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    quantiles: tuple[float, ...] = field(default=(), repr=False)
    top: tuple[ValueCount, ...] = ()
    histogram: tuple[int, ...] = field(default=(), repr=False)


@record
class Profile(Record):
    """What is in a dataset version."""

    rows: int = 0
    duplicate_rows: int = 0
    columns: tuple[ColumnProfile, ...] = ()

    def _repr_html_(self) -> str:
        names = ["name", "type", "nulls", "nans", "distinct", "min", "max", "mean", "std"]
        rows = ([getattr(column, name) for name in names] for column in self.columns)
        return html_table(names, rows, f"{self.rows} rows, {self.duplicate_rows} of them repeat others")


# -- training and models --------------------------------------------------------------------------------------------------------


@record
class ModelSpec(Record):
    """Architecture, its params, and "random" or the model version to start from."""

    architecture: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    init: str = ""

    def __str__(self) -> str:
        params = ", ".join(f"{key}={value}" for key, value in self.params.items())
        return f"{self.architecture}({params})" + (f" from {self.init}" if self.init not in ("", "random") else "")


@record
class EarlyStopping(Record):
    """Stop after `patience` epochs without an improvement of `min_delta`."""

    patience: int = 0
    min_delta: float = 0.0


@record
class TrainingSpec(Record):
    """How it is trained; None: the platform's default."""

    epochs: int = 0
    batch_size: int = 0
    learning_rate: float | None = None
    optimizer: str = ""
    seed: int = 0
    weight_decay: float | None = None
    early_stopping: EarlyStopping | None = None
    validation_fraction: float | None = None
    test_fraction: float | None = None
    double_precision: bool = False
    time_limit_seconds: int = 0
    workers: int = 1


@record
class Progress(Record):
    """How far a job is."""

    epoch: int = 0
    epochs: int = 0
    step: int = 0
    loss: float = 0.0
    validation_loss: float | None = None
    rows_per_second: float = 0.0

    def __str__(self) -> str:
        validation = "" if self.validation_loss is None else f", validation loss {self.validation_loss:.6g}"
        return f"epoch {self.epoch}/{self.epochs}, loss {self.loss:.6g}{validation}" if self.epochs else ""


@record
class TrainingJob(Record):
    """From a dataset version to an evaluated model version.

    `state`: queued, starting, running, cancelling; at the end succeeded (then `model_version` is "name@n"), failed (then `error`
    says why) or cancelled.
    """

    id: str = ""
    name: str = ""
    state: str = ""
    reason: str = ""
    dataset: str = ""
    task: str = ""
    target: str = ""
    features: tuple[str, ...] = ()
    output_model: str = ""
    model_version: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    progress: Progress | None = None
    error: Problem | None = None
    model: ModelSpec | None = None
    training: TrainingSpec | None = None
    resources: Resources | None = None
    attempts: int = 0
    create_time: datetime | None = None
    start_time: datetime | None = None
    first_step_time: datetime | None = None
    end_time: datetime | None = None
    trace_id: str = ""
    workspace: str = ""

    @property
    def ended(self) -> bool:
        """It will not change any more."""
        return self.state in ("succeeded", "failed", "cancelled")


@record
class BatchPrediction(Record):
    """A model's answer to every row of a dataset version, as a new version.

    `state`: queued, running, registering, cancelling; at the end succeeded (then `version` is "name@n"), failed (then `error` says why) or
    cancelled.
    """

    id: str = ""
    state: str = ""
    reason: str = ""
    model: str = ""
    dataset: str = ""
    output: str = ""
    output_version: int = 0
    rows: int = 0
    rows_done: int = 0
    error: Problem | None = None
    resources: Resources | None = None
    attempts: int = 0
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    workspace: str = ""

    @property
    def ended(self) -> bool:
        """It will not change any more."""
        return self.state in ("succeeded", "failed", "cancelled")

    @property
    def version(self) -> str:
        """The dataset version that it makes; "" until that has begun."""
        return f"{self.output}@{self.output_version}" if self.output_version else ""


@record
class MetricPoint(Record):
    """One measured value of, e.g., "loss" or "validation_accuracy"."""

    name: str = ""
    step: int = 0
    epoch: int = 0
    value: float = 0.0
    time: datetime | None = None


@record
class LogLine(Record):
    """One line of a job's "stdout", "stderr" or of the "platform"."""

    number: int = 0
    stream: str = ""
    text: str = ""
    time: datetime | None = None


@record
class JobEvent(Record):
    """What happened to a job: `kind` "job", "metric" or "log" says which of the three fields is set. `id` is where to resume."""

    id: str = ""
    kind: str = ""
    job: TrainingJob | None = None
    metric: MetricPoint | None = None
    log: LogLine | None = None


@record
class Model(Record):
    """A name under which model versions are kept."""

    name: str = ""
    latest_version: int = 0
    create_time: datetime | None = None
    workspace: str = ""


@record
class SignatureField(Record):
    """One field of a record: double, integer, boolean, string or image; `shape` of pictures is (height, width, channels)."""

    name: str = ""
    type: str = ""
    optional: bool = False
    categories: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.type}{'?' if self.optional else ''}"


@record
class Signature(Record):
    """What a model takes and gives."""

    inputs: tuple[SignatureField, ...] = ()
    outputs: tuple[SignatureField, ...] = ()

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.inputs))} → {', '.join(map(str, self.outputs))}"


@record
class ModelVersion(Record):
    """Immutable: weights, preprocessing, signature, and the figures that it reached on held-out rows (`metrics`)."""

    model: str = ""
    number: int = 0
    task: str = ""
    architecture: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    signature: Signature | None = None
    parameters: int = 0
    training_rows: int = 0
    test_rows: int = 0
    dataset: str = ""
    training_job: str = ""
    files: tuple[Artifact, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict, repr=False)
    create_time: datetime | None = None
    trace_id: str = ""
    workspace: str = ""
    source: str = ""

    @property
    def ref(self) -> str:
        """As other calls name it: "wdbc@2"."""
        return f"{self.model}@{self.number}"


# -- endpoints ------------------------------------------------------------------------------------------------------------------


@record
class Scaling(Record):
    """Between which numbers an endpoint's replicas follow its requests; with 0 at least, it sleeps after `idle_seconds` without any."""

    min_replicas: int = 0
    max_replicas: int = 0
    target_in_flight: float = 0.0
    idle_seconds: int = 0

    def __str__(self) -> str:
        return f"{self.min_replicas} to {self.max_replicas}" if self.min_replicas != self.max_replicas else str(self.min_replicas)


@record
class Endpoint(Record):
    """A name that answers predictions. `state`: "starting", "ready", "failed" (`error` says why), "stopped" or "sleeping"."""

    name: str = ""
    model: str = ""
    state: str = ""
    replicas: int = 0
    ready_replicas: int = 0
    reason: str = ""
    error: Problem | None = None
    revision: int = 0
    scaling: Scaling | None = None
    resources: Resources | None = None
    create_time: datetime | None = None
    update_time: datetime | None = None
    workspace: str = ""


@record
class Replica(Record):
    """A process that serves one model version."""

    id: str = ""
    model: str = ""
    revision: int = 0
    state: str = ""
    reason: str = ""
    node: str = ""
    create_time: datetime | None = None
    ready_time: datetime | None = None


@record
class Revision(Record):
    """A model version that an endpoint serves, or served, and its share of the requests.

    `state`: "starting", "shadowing", "canary", "split", "proving", "active", "replaced" or "rolled_back" (`reason` says why).
    """

    number: int = 0
    model: str = ""
    state: str = ""
    percent: int = 0
    replicas: int = 0
    ready_replicas: int = 0
    reason: str = ""
    requests: int = 0
    errors: int = 0
    mean_seconds: float = 0.0
    p95_seconds: float = 0.0
    shadow_compared: int = 0
    shadow_differing: int = 0
    create_time: datetime | None = None


@record
class ScalingDecision(Record):
    """A change of the number of replicas, and why."""

    time: datetime | None = None
    from_replicas: int = 0
    to_replicas: int = 0
    why: str = ""


@record
class EndpointScaling(Record):
    """What an endpoint's scaling sees now, and its last decisions, newest first."""

    scaling: Scaling | None = None
    replicas: int = 0
    ready_replicas: int = 0
    starting_replicas: int = 0
    in_flight: float = 0.0
    waiting: int = 0
    last_request_time: datetime | None = None
    decisions: tuple[ScalingDecision, ...] = ()


# -- marketplace ----------------------------------------------------------------------------------------------------------------


@record
class Price(Record):
    """What one answered row costs."""

    per_row: Money | None = None

    def __str__(self) -> str:
        return f"{self.per_row} a row" if self.per_row and self.per_row.micros else "free"


@record
class Listing(Record):
    """A service that a workspace offers to all others. `card` is Markdown with YAML front matter."""

    slug: str = ""
    title: str = ""
    publisher: str = ""
    summary: str = ""
    price: Price | None = None
    state: str = ""
    rating: float = 0.0
    reviews: int = 0
    subscribers: int = 0
    endpoint: str = ""
    card: str = field(default="", repr=False)
    version: int = 0
    create_time: datetime | None = None
    update_time: datetime | None = None


@record
class Subscription(Record):
    """A workspace's right to call a listing at the price it agreed to."""

    id: str = ""
    listing: str = ""
    workspace: str = ""
    state: str = ""
    price: Price | None = None
    create_time: datetime | None = None
    end_time: datetime | None = None


@record
class Review(Record):
    """1 to 5 stars and a text."""

    listing: str = ""
    workspace: str = ""
    stars: int = 0
    text: str = ""
    create_time: datetime | None = None


# -- account --------------------------------------------------------------------------------------------------------------------


@record
class Workspace(Record):
    """A team and everything it owns; `role` is the caller's."""

    name: str = ""
    display_name: str = ""
    plan: str = ""
    role: str = ""
    create_time: datetime | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.plan})"


@record
class Quota(Record):
    """How much of one metric is used."""

    metric: str = ""
    limit: int = 0
    used: int = 0
    remaining: int = 0

    def __str__(self) -> str:
        return f"{self.metric} {self.used}/{self.limit}"


@record
class Me(Record):
    """Who calls, where, as what, and what is left of the plan."""

    member: str = ""
    workspace: Workspace | None = None
    role: str = ""
    quotas: tuple[Quota, ...] = ()


@record
class Member(Record):
    """A person in a workspace: viewer, editor, admin, owner or operator."""

    email: str = ""
    role: str = ""
    create_time: datetime | None = None


@record
class ApiKey(Record):
    """A key, without its secret; `revoke_time` is set once it was revoked."""

    id: str = ""
    name: str = ""
    prefix: str = ""
    role: str = ""
    member: str = ""
    create_time: datetime | None = None
    revoke_time: datetime | None = None

    def __str__(self) -> str:
        return f"{self.name or self.id} ({self.prefix}…)"


@record
class NewApiKey(Record):
    """A key that was just made. `secret` is told this once; it is left out of every display."""

    api_key: ApiKey | None = None
    secret: str = field(default="", repr=False)


@record
class NewWorkspace(Record):
    """A workspace that was just made, with its first key. `secret` is told this once; it is left out of every display."""

    workspace: Workspace | None = None
    api_key: ApiKey | None = None
    secret: str = field(default="", repr=False)


@record
class PlanQuota(Record):
    """The most of one metric."""

    metric: str = ""
    limit: int = 0

    def __str__(self) -> str:
        return f"{self.metric} {self.limit}"


@record
class PlanPrice(Record):
    """Price of one unit of a metric."""

    metric: str = ""
    unit_price: Money | None = None

    def __str__(self) -> str:
        return f"{self.metric} {self.unit_price}"


@record
class Plan(Record):
    """What a workspace pays and how much it may use."""

    name: str = ""
    display_name: str = ""
    monthly_price: Money | None = None
    quotas: tuple[PlanQuota, ...] = ()
    prices: tuple[PlanPrice, ...] = ()


@record
class UsageLine(Record):
    """Use of one metric by one resource in one period."""

    metric: str = ""
    resource: str = ""
    quantity: float = 0.0
    unit_price: Money | None = None
    amount: Money | None = None


@record
class Usage(Record):
    """Use and cost of a calendar month (UTC)."""

    period: str = ""
    lines: tuple[UsageLine, ...] = ()
    total: Money | None = None
    quotas: tuple[Quota, ...] = ()

    def _repr_html_(self) -> str:
        return _lines_html(self.lines, f"{self.period}: {self.total}")


@record
class Invoice(Record):
    """What is owed for a period. `state`: "draft" (amounts still grow) or "issued"."""

    number: str = ""
    period: str = ""
    state: str = ""
    total: Money | None = None
    lines: tuple[UsageLine, ...] = ()
    issue_time: datetime | None = None

    def _repr_html_(self) -> str:
        return _lines_html(self.lines, f"{self.number or 'draft'} {self.period}: {self.total}")


@record
class EarningLine(Record):
    """What one buyer's calls of one listing brought in: gross - fee = net."""

    listing: str = ""
    buyer: str = ""
    quantity: float = 0.0
    gross: Money | None = None
    fee: Money | None = None
    net: Money | None = None


@record
class Earnings(Record):
    """What others' calls have brought in, in a calendar month (UTC)."""

    period: str = ""
    lines: tuple[EarningLine, ...] = ()
    net: Money | None = None

    def _repr_html_(self) -> str:
        names = ["listing", "buyer", "quantity", "gross", "fee", "net"]
        return html_table(names, ([getattr(line, name) for name in names] for line in self.lines), f"{self.period}: {self.net}")


def _lines_html(lines: tuple[UsageLine, ...], note: str) -> str:
    names = ["metric", "resource", "quantity", "unit_price", "amount"]
    return html_table(names, ([getattr(line, name) for name in names] for line in lines), note)


# -- compute and traces ---------------------------------------------------------------------------------------------------------


@record
class Device(Record):
    """A GPU or TPU; `allocation` is who holds it, empty when free."""

    index: int = 0
    accelerator: str = ""
    model: str = ""
    memory_bytes: int = 0
    allocation: str = ""

    def __str__(self) -> str:
        return f"{self.index}: {self.model or self.accelerator}" + (" (in use)" if self.allocation else "")


@record
class Node(Record):
    """A machine that runs jobs and replicas. `cpu_millis` are thousandths of a core."""

    name: str = ""
    pool: str = ""
    state: str = ""
    cpu_millis: int = 0
    free_cpu_millis: int = 0
    memory_bytes: int = 0
    free_memory_bytes: int = 0
    devices: tuple[Device, ...] = ()
    cpu_model: str = ""
    heartbeat_time: datetime | None = None


@record
class Allocation(Record):
    """A share of one node. `state`: "queued" (`reason` says for what it waits), "granted", "released" or "expired"."""

    id: str = ""
    holder: str = ""
    state: str = ""
    reason: str = ""
    queue_position: int = 0
    node: str = ""
    resources: Resources | None = None
    devices: tuple[int, ...] = ()
    workers: int = 1
    nodes: tuple[str, ...] = ()
    create_time: datetime | None = None
    grant_time: datetime | None = None
    end_time: datetime | None = None
    lease_expire_time: datetime | None = None
    workspace: str = ""


@record
class Span(Record):
    """One piece of work in a trace; times in nanoseconds since 1970."""

    trace_id: str = ""
    span_id: str = ""
    parent_id: str = ""
    name: str = ""
    service: str = ""
    start_ns: int = 0
    end_ns: int = 0
    status: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def seconds(self) -> float:
        """How long it took; 0 where the clock went backwards or the span is open."""
        return max(self.end_ns - self.start_ns, 0) / 1e9


@record
class Trace(Record):
    """Everything that one request set going."""

    trace_id: str = ""
    spans: tuple[Span, ...] = ()

    def tree(self) -> list[tuple[int, Span]]:
        """The spans as (depth, span), parents before children, in order of time. A span whose parent is unknown counts as a root."""
        known = {span.span_id for span in self.spans}
        children: dict[str, list[Span]] = {}
        for span in sorted(self.spans, key=lambda span: span.start_ns):
            children.setdefault(span.parent_id if span.parent_id in known and span.parent_id != span.span_id else "", []).append(span)
        found: list[tuple[int, Span]] = []
        seen: set[int] = set()
        rest = [(0, span) for span in reversed(children.get("", []))]
        while rest:
            depth, span = rest.pop()
            if id(span) not in seen:
                seen.add(id(span))
                found.append((depth, span))
                rest += [(depth + 1, child) for child in reversed(children.get(span.span_id, []))]
        return found + [(0, span) for span in self.spans if id(span) not in seen]

    def _repr_html_(self) -> str:
        rows = [("\u2003" * depth + span.name, span.service, f"{span.seconds * 1000:.1f} ms", span.status) for depth, span in self.tree()]
        return html_table(["span", "service", "time", "status"], rows, self.trace_id)
