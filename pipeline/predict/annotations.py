"""Predictions as annotations that other tools read: COCO, and Label Studio for correcting them by hand.

A page of a TIFF or a frame of a film or DICOM file is no picture file that such a tool could show: it is written to frames/.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

from polyp_difom.pipeline.predict.clock import Clock
from polyp_difom.pipeline.predict.outputs import OUTPUTS, Output, PartialText, Prediction
from polyp_difom.pipeline.predict.pictures import Picture
from polyp_difom.pipeline.predict.regions import polygons, run_lengths

CATEGORY = "polyp"


class _Annotations(Output):
    """Base of both: refers to pictures."""

    def frame_file(self, picture: Picture) -> str:
        """Path below the output folder of the picture that a page or frame was saved as."""
        file = f"frames/{picture.name}.png"
        if not (self.folder / file).exists():
            self.write_png(file, picture.image)
        return file


@OUTPUTS.register("coco")
class Coco(_Annotations):
    """coco.json: images, and one annotation a region with box, area, run lengths and score.

    `file_name` is relative to the input folder, or to the output folder for frames/. Format: https://cocodataset.org/#format-data
    """

    def __init__(self, folder: Path, clock: Clock, model: str):
        super().__init__(folder, clock, model)
        self._file = PartialText(folder / "coco.json")
        self._images: list[str] = []
        self._annotations = 0
        head = {"description": f"predictions of {model}"}
        categories = [{"id": 1, "name": CATEGORY, "supercategory": ""}]
        self._file.write(
            f'{{"info": {json.dumps(head)}, "licenses": [], "categories": {json.dumps(categories)}, "annotations": ['
        )

    def add(self, prediction: Prediction) -> None:
        """See `Output.add`."""
        picture, (height, width) = prediction.picture, prediction.mask.shape
        file = picture.file if picture.index is None else self.frame_file(picture)
        image = {"id": len(self._images) + 1, "file_name": file, "width": width, "height": height}
        self._images.append(json.dumps(image))
        for region in prediction.regions:
            comma = ",\n" if self._annotations else "\n"
            self._annotations += 1
            annotation = {
                "id": self._annotations, "image_id": image["id"], "category_id": 1, "bbox": region.box, "area": region.area,
                "segmentation": {"size": [height, width], "counts": run_lengths(region, (height, width))},
                "iscrowd": 0, "score": round(region.score, 4),
            }  # fmt: skip
            self._file.write(comma + json.dumps(annotation))

    def close(self) -> None:
        """See `Output.close`."""
        self._file.write('\n], "images": [\n' + ",\n".join(self._images) + "\n]}\n")
        self._file.close()


@OUTPUTS.register("label-studio")
class LabelStudio(_Annotations):
    """label-studio.json: tasks with polygons as predictions, for a project with `<PolygonLabels name="label" toName="image">`.

    Pictures are named as Label Studio's local storage serves them when its document root is `/`.
    Format: https://labelstud.io/guide/predictions
    """

    def __init__(self, folder: Path, clock: Clock, model: str):
        super().__init__(folder, clock, model)
        self._file = PartialText(folder / "label-studio.json")
        self._comma = ""
        self._file.write("[")

    def add(self, prediction: Prediction) -> None:
        """See `Output.add`."""
        picture = prediction.picture
        path = Path(picture.source) if picture.index is None else self.folder / self.frame_file(picture)
        task = {
            "data": {"image": "/data/local-files/?d=" + quote(path.absolute().as_posix().lstrip("/"))},
            "predictions": [
                {
                    "model_version": self.model,
                    "score": round(float(prediction.probability.max()), 4),
                    "result": self._results(prediction),
                }
            ],
        }
        self._file.write(f"{self._comma}\n{json.dumps(task)}")
        self._comma = ","

    def _results(self, prediction: Prediction) -> list[dict]:
        height, width = prediction.mask.shape
        return [
            {
                "id": f"region-{number}-{part}", "type": "polygonlabels", "from_name": "label", "to_name": "image",
                "original_width": width, "original_height": height, "image_rotation": 0, "score": round(region.score, 4),
                "value": {
                    "points": [[round(100 * x / width, 4), round(100 * y / height, 4)] for x, y in polygon.tolist()],
                    "closed": True, "polygonlabels": [CATEGORY],
                },
            }
            for number, region in enumerate(prediction.regions, start=1)
            for part, polygon in enumerate(polygons(region), start=1)
        ]  # fmt: skip

    def close(self) -> None:
        """See `Output.close`."""
        self._file.write("\n]\n")
        self._file.close()
