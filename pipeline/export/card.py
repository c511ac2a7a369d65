"""The model card: what the network is, what it was trained on, how well it does, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from polyp_difom.pipeline.export.describe import terms
from polyp_difom.pipeline.models.exported import Description

METRICS = {"mdice": "mDice", "miou": "mIoU"}
COLUMNS = {"dataset", "split", "protocol", "images", *METRICS}
TEMPLATE = """---
{{ card_data }}
---
# {{ about.name }}

Polyp segmentation in colonoscopy frames: `{{ header.student }}`, {{ "%.2f"|format(about.parameters / 1e6) }} M parameters,
on frames of {{ about.frame_size }} x {{ about.frame_size }} pixels, {{ taught }}. Made with polyp-difom.

**{{ about.disclaimer }}**

## Intended use

Research and teaching on polyp segmentation: comparison with other networks, distillation, further training. Out of scope:
any use on patients, and pictures that are not colour frames of colonoscopies.

## How to load

```python
from polyp_difom.pipeline.api import from_pretrained

model = from_pretrained("path/to/this/folder")  # or "ORG/NAME"
probability = model.probability(picture)  # uint8 [height, width, 3] -> float32 [height, width]
polyp = probability >= {{ about.threshold }}
```

The whole picture is resized to the frame size (bilinear, antialiased; no crop, no padding), and the logits are resized back.

## Figures
{% if figures %}
| data set | split | protocol | images | mDice | mIoU |
|---|---|---|---|---|---|
{% for r in figures -%}{% set less = ", without %s leaked frames"|format(r.left_out) if r.left_out else "" -%}
{% set dice, iou = "%.3f"|format(r.mdice), "%.3f"|format(r.miou) -%}
| {{ r.dataset }}{{ less }} | {{ r.split }} | {{ r.protocol }} | {{ r.images }} | {{ dice }} | {{ iou }} |
{% endfor %}
Figures of different protocols cannot be compared with each other.
{% else %}
Not evaluated.
{% endif %}
## Training data
{% for sentence in terms %}
- {{ sentence }}
{%- else %}
Unknown.
{%- endfor %}

## Teachers
{% for teacher in teachers %}
- `{{ teacher.name }}` ({{ teacher.licence }}; weights {{ (teacher.weights_digest or "unknown")[:12] }});
  polyp frames in its own training: {{ teacher.contamination }}
{%- else %}
{{ "None: trained on masks alone." if header.objective == "none" else "Not recorded." }}
{%- endfor %}

## Training recipe

| setting | value |
|---|---|
{% for name, value in recipe.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
## Limits

Small public data sets from few centres; no video, no other organs, no other devices. A frame without polyp can be
answered with one. A teacher that has seen test frames in its own training makes figures look better than they are.
"""
RECIPE = (
    *("student", "objective", "teachers", "epochs", "batch_size", "learning_rate", "weight_decay", "distill_weight"),
    *(
        "weight_schedule",
        "drop_teachers",
        "loss",
        "optimizer",
        "schedule",
        "clip",
        "ema",
        "patience",
        "flips",
        "colour",
        "affine",
    ),
    *("auto", "seed", "precision", "split", "epoch", "val_dice", "signature"),
)


def model_card(about: Description) -> str:
    """README.md with front matter that the hub reads (licence, tags, figures)."""
    header = about.header
    teachers = header.get("provenance", {}).get("teachers", [])
    figures = [row for row in about.figures if row.keys() >= COLUMNS and all(isinstance(row[m], int | float) for m in METRICS)]
    card = ModelCard.from_template(
        _front_matter(about, figures), template_str=TEMPLATE, about=about, header=header, figures=figures, terms=terms(header),
        teachers=teachers, recipe=_recipe(header), taught=_taught(header),
    )  # fmt: skip
    return str(card)


def _front_matter(about: Description, figures: list[dict[str, Any]]) -> ModelCardData:
    results = [
        EvalResult(
            task_type="image-segmentation", dataset_type=row["dataset"], dataset_name=row["dataset"],
            dataset_split=row["split"], metric_type="dice" if name == "mdice" else "iou", metric_value=row[name],
            metric_name=f"{METRICS[name]}, protocol {row['protocol']}",
        )
        for row in figures if not row.get("left_out") for name in METRICS  # an index has no words for what was left out
    ]  # fmt: skip
    return ModelCardData(
        license="other", license_name="terms-of-teachers-and-data", library_name="polyp-difom",
        pipeline_tag="image-segmentation",
        tags=["polyp-segmentation", "colonoscopy", "medical-imaging", "knowledge-distillation", "not-a-medical-device"],
        metrics=["dice", "iou"], model_name=about.name, eval_results=results or None,
    )  # fmt: skip


def _taught(header: Mapping[str, Any]) -> str:
    if header.get("objective") == "none":
        return "trained on masks alone"
    return f"taught by {', '.join(header.get('teachers') or []) or 'teachers that are not recorded'}"


def _recipe(header: Mapping[str, Any]) -> dict[str, Any]:
    def shown(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {part}" for name, part in value.items())
        if isinstance(value, float):
            return f"{value:.4g}"
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return {name.replace("_", " "): shown(header[name]) for name in RECIPE if name in header}
