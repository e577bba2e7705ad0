"""From a dirty table to an earning service, step by step: `LEPTON_API_KEY=your_api_key lepton up`, then run this beside it.

Needs scikit-learn for its data. Everything that it makes is named with a suffix of its own, and deleted at the end.
"""

import json
import os
import random
import secrets
from pathlib import Path

from sklearn.datasets import load_breast_cancer

import leptonai as la

CARD = """---
license: apache-2.0
tags: [tabular, demonstration]
---
Tells malignant from benign tumours by 30 measurements. Accuracy on rows that it had not seen: {accuracy:.3f}.
"""


def dirty_table() -> str:
    """The breast cancer table with what real tables have: missing cells, rows twice, several spellings."""
    table = load_breast_cancer(as_frame=True).frame
    table.columns = [name.replace(" ", "_") for name in table.columns]
    table["diagnosis"] = [random.choice(("B", " b", "b ") if benign else ("M", "m", " M")) for benign in table.pop("target")]
    table.loc[table.sample(20, random_state=1).index, "mean_radius"] = None
    return str(table.loc[[*table.index, *table.sample(15, random_state=2).index]].to_csv(index=False))


def main() -> None:
    """Everything in order."""
    random.seed(7)
    name = f"wdbc-{secrets.token_hex(3)}"
    client = la.Client(os.environ.get("LEPTON_API_KEY", "your_api_key"))
    me = client.account.me()
    print(f"1. {me.member}, {me.role} of {me.workspace}")

    version = client.datasets.upload(name, dirty_table().encode(), filename="wdbc.csv")
    print(f"2. uploaded {version.ref}: {version.rows} rows; notices: {', '.join(version.notices) or 'none'}")

    clean = client.datasets.transform(
        version,
        [
            la.steps.derive("diagnosis", "upper(trim(diagnosis))"),
            la.steps.dedupe(),
            la.steps.impute("median"),
            la.steps.split(test=0.2, seed=7, stratify="diagnosis"),
        ],
    )
    print(f"3. cleaned: {clean.ref} of {clean.lineage}; {', '.join(map(str, clean.splits))} rows")

    spec = json.loads((Path(__file__).parent / "training_job.json").read_text())
    job = client.training_jobs.create(spec, dataset=clean, output_model=name, name=name)
    job = client.training_jobs.wait(job)
    print(f"4. trained {job.model_version}: " + ", ".join(f"{key} {value:.4f}" for key, value in job.metrics.items()))

    client.endpoints.create(name, job.model_version)
    endpoint = client.endpoints.wait_ready(name)
    rows = [row for row in client.datasets.preview(clean, rows=3, split="test").rows if row.pop("diagnosis")]
    for answer in client.endpoints.predict(name, rows):
        print(f"5. {endpoint.name} answers {answer}")

    listing = client.listings.create(
        name, endpoint=name, title="Breast check", card=CARD.format(accuracy=job.metrics["accuracy"]), price="0.002"
    )
    print(f"6. published {listing.slug} at {listing.price}")

    made = client.account.create_workspace(f"buyer-{secrets.token_hex(3)}")
    with la.Client(made.secret, client.base_url) as buyer:
        buyer.listings.subscribe(name)
        print(f"7. another workspace calls it: {len(buyer.listings.invoke(name, rows))} rows answered")
        buyer.listings.review(name, 5, "agrees with our laboratory")
        invoice = buyer.account.create_invoice()
        print(f"8. its invoice {invoice.number}: {invoice.total}; our earnings: {client.account.earnings().net}")

    trace = client.traces.get(job.trace_id)
    services = {span.service for span in trace.spans}
    print(f"9. one trace of {len(trace.spans)} spans through {len(services)} services: lepton trace {job.trace_id}")

    client.listings.withdraw(name)
    client.endpoints.delete(name)
    client.models.delete(name)
    client.datasets.delete(name)


if __name__ == "__main__":
    main()
