"""``limner invert``: find the latents of the faces in photos."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import zoo
from limner.app.commands.align import unique_names
from limner.app.console import Console, format_seconds
from limner.app.outputs import OutputOptions, refuse_taken
from limner.errors import LimnerError, MediaError, OptionError
from limner.faces.options import AlignOptions, DetectOptions, ReadOptions
from limner.files import check_writable, replacing
from limner.inversion.options import (
    COMPACT,
    ENCODED,
    METHODS,
    PRESET_TRUNKS,
    PRESETS,
    EncodeOptions,
    InversionOptions,
    PivotalOptions,
)
from limner.options import knob, to_mapping
from limner.pipeline.options import TRUNKS, TrunkOptions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from limner.faces import Alignment
    from limner.inversion import Inversion
    from limner.latent import Latent
    from limner.pipeline import Models

REPORT = "report.json"
LOOKING = (*ENCODED, *COMPACT, "auto", "pivotal")  # methods that work, or may work, with an encoder
BATCH, BATCH_UP_TO_PX = 4, 256  # faces at a time by default, and the largest generator for so many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(
    InversionOptions,
    PivotalOptions,
    EncodeOptions,
    TrunkOptions,
    AlignOptions,
    DetectOptions,
    ReadOptions,
    OutputOptions,
):
    """Options of ``limner invert``."""

    method: str = knob("auto", choices=("auto", *METHODS))
    """auto: hybrid if the generator has a compact encoder, else w+; encoder: the compact encoder, tens of milliseconds;
    hybrid: a search in w+ that starts from it; z, z+, w, w+, s: the space that is searched (w+ is closest to the
    picture, w easiest to edit); noise: the noise maps alone; ii2s: w+ near the codes of the mapping network; pivotal:
    search, then tune the generator around what was found; psp, e4e, restyle: an
    encoder of this kind; hyper: HyperInverter, code and generator from networks"""
    photos: tuple[Path, ...] = knob()
    """photos; every face of every photo is embedded"""
    out: Path = Path("inverted")
    """folder for every face's codes (NAME_01.safetensors) and what the generator paints of them (NAME_01.png), and
    for report.json, which later runs of the same generator extend"""
    model: str = zoo.DEFAULT_GENERATOR
    """generator, name or file"""
    encoder: Path | None = None
    """checkpoint of the methods psp, e4e, restyle and hyper, whose generator, if any, takes the place of --model; or a
    compact encoder in place of the generator's own"""
    preset: str = knob("fast", choices=tuple(PRESETS))
    """settings as another program publishes them; they stand in for every option that is left at its default"""
    trunk: str = knob("auto", choices=("auto", *TRUNKS, "vgg16"))
    """what perceptual distances are measured with; auto: what the preset was published with, and where those weights
    are not installed the bundled lite0 in its place, map by map, as the report then says; vgg16: four maps of VGG16, as
    Image2StyleGAN; see also limner models pull"""
    arcface: Path | None = None
    """weights of ArcFace (model_ir_se50.pth) for the identity distance; without it the bundled embedder stands in"""
    mask: Path | None = None
    """picture of the generator's or any other square size, white where the aligned face is to be fitted; what is black
    is left to the generator (inpainting)"""
    tuned_kilobytes: int = knob(0, lo=0, hi=1_000_000)
    """pivotal and hyper: what the change of the generator may take in the file of the codes; 0: a tenth of what
    float16 takes, or 100 where that is less. Smaller ones lose more of it, as delta_error in the file says"""
    start: Path | None = None
    """latent file to start from, such as an encoder's or one of an earlier run"""
    compare: bool = False
    """also write photo and reconstruction side by side (NAME_01-compare.png)"""
    size: int = knob(512, lo=16, hi=4096)
    """side in px of the pictures in that comparison; the search itself works at the generator's size"""
    batch: int = knob(0, lo=0, hi=256)
    """faces, of all photos, that are embedded at a time; each comes out as it would alone, more take more memory; 0: 4,
    or 1 where the generator has more than 256 px. Pivotal tuning takes one at a time, psp, e4e, restyle and hyper take
    --encode-batch"""


def run(options: Options, console: Console) -> int:
    """Embed the faces; a photo that fails is reported and the others go on."""
    if not options.photos:
        raise OptionError("limner invert: name at least one photo")
    if options.landmarks and len(options.photos) > 1:
        raise OptionError(f"landmarks belong to one photo, but {len(options.photos)} were named")
    search = search_options(options)
    check_writable(options.out / REPORT)
    earlier = read_report(options.out / REPORT, options)
    from limner.app.device import pick_device
    from limner.checkpoints.latents import load_latent
    from limner.nn import deltas
    from limner.nn.precision import choose_precision
    from limner.pipeline import load_models
    from limner.pipeline.models import pick_trunk

    start = None if options.start is None else load_latent(options.start).latent
    wanted = PRESET_TRUNKS.get(options.preset, "lite0") if options.trunk == "auto" else options.trunk
    trunk, stands_for = pick_trunk(wanted) if options.trunk == "auto" else (wanted, None)
    if stands_for is not None:
        console.warn(f"{stands_for} of preset {options.preset} is not installed; {trunk} stands in for it")
    models = load_models(
        options.model,
        encoder=options.encoder,
        trunk=trunk,
        stands_for=stands_for,
        arcface=options.arcface,
        device=pick_device(console.settings),
    )
    precision = choose_precision(search.precision, models.generator.w_avg.device)
    search = dataclasses.replace(search, precision=precision)
    base = {"name": models.base, "digest": deltas.digest(models.generator)}
    if earlier is not None and not options.overwrite and not _same_base(earlier, base):
        raise OptionError(
            f"{options.out / REPORT} is about faces of another generator ({earlier['base'].get('name', 'unnamed')}), "
            f"not of {models.base}; give --overwrite for a new report, or another --out"
        )
    job = _Job(options, search, start, models, base, console)
    for batch in job.batches():
        job.embed(batch)
    entries, failed = job.entries, job.failed
    report = options.out / REPORT if entries else None
    if report is not None:
        told = {"base": base, "identity": identity_measure(entries[0]), "faces": entries, "failed": failed}
        _write_report(report, extend_report(read_report(report, options), told, options.photos))
        _print_table(entries, console)
    console.print(
        f"wrote {len(entries)} latents to {options.out}" + f", {len(failed)} photos failed" * bool(failed)
        if entries
        else f"wrote nothing: all {len(failed)} photos failed"
    )
    console.result(faces=entries, failed=failed, report=report)
    return 2 if failed else 0


def read_report(path: Path, options: OutputOptions) -> dict[str, Any] | None:
    """Return what an earlier run reported, or None where there is nothing, or something else that may be replaced.

    Raises:
        OptionError: something else is there and may not be replaced.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        told = None
    if isinstance(told, dict) and isinstance(told.get("base"), dict):
        lists = [told.get("faces"), told.get("failed")]
        if all(isinstance(one, list) and all(isinstance(entry, dict) for entry in one) for one in lists):
            return told
    if not options.overwrite:
        raise OptionError(
            f"{path} exists already and is no report of limner invert; give --overwrite or another --out"
        )
    return None


def extend_report(
    earlier: dict[str, Any] | None, told: dict[str, Any], photos: Sequence[Path]
) -> dict[str, Any]:
    """Return a report with what an earlier one says of other files; what ``identity`` says is about the newer faces.

    Args:
        earlier: see `read_report`.
        told: the report of this run; it stands alone where the earlier one is about another generator.
        photos: of this run; that they failed earlier counts no more.
    """
    if earlier is None or not _same_base(earlier, told["base"]):
        return told
    written = {Path(file).name for face in told["faces"] for file in face["files"]}
    tried = {str(photo) for photo in photos}
    faces = [
        face
        for face in earlier["faces"]
        if written.isdisjoint(Path(file).name for file in face.get("files") or ())
    ]
    failed = [one for one in earlier["failed"] if one.get("photo") not in tried]
    return told | {"faces": faces + told["faces"], "failed": failed + told["failed"]}


def _same_base(report: dict[str, Any], base: dict[str, str]) -> bool:
    return report["base"].get("digest") == base["digest"]


def identity_measure(face: dict[str, Any]) -> dict[str, Any]:
    """Say what the identity distances of a report are."""
    from limner.nn.identity import SAME_PERSON, DlibResNet

    about: dict[str, Any] = {"embedder": face["embedder"], "distance": "squared L2"}
    if face["embedder_stands_for"] is not None:
        about["stands_for"] = face["embedder_stands_for"]
    return about | ({"same_person_below": SAME_PERSON} if face["embedder"] == DlibResNet.name else {})


def read_mask(path: Path, side: int) -> Any:
    """Read a picture as a mask (1, 1, side, side), 0 to 1, by its brightness."""
    from limner import media

    pixels = media.resize_pixels(media.read(path).pixels, side)
    return (media.to_image(pixels).mean(1, keepdim=True) + 1) / 2


def search_options(options: Options) -> InversionOptions:
    """Return the settings of the search: the options, those at their default replaced by the preset's."""
    values = {}
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    for field in dataclasses.fields(InversionOptions):
        value = getattr(options, field.name)
        values[field.name] = (
            PRESETS[options.preset].get(field.name, value) if value == defaults[field.name] else value
        )
    if options.start is not None:
        values["init"] = "given"
    elif values["init"] == "given":
        raise OptionError("init is 'given', but no codes are: name a latent file with --start")
    looking = values["method"] in LOOKING or values["init"] == "encoder"
    wrong = values["method"] in ENCODED if options.encoder is None else not looking
    if wrong:
        raise OptionError(
            f"method is {values['method']!r}; "
            + (
                "name its checkpoint with --encoder"
                if options.encoder is None
                else "--encoder is not used by it"
            )
        )
    return InversionOptions(**values)


@dataclasses.dataclass(frozen=True, eq=False)
class _Face:
    """A face that waits to be embedded.

    Attributes:
        photo, number: where it is from; 1 is the largest face of a photo.
        stem: its files, without the endings.
        alignment: how it lies in the photo.
        crop: uint8 (R, R, 3), as the generator would paint it.
        shown: the same at the size of the comparison, where one is wanted.
    """

    photo: Path
    number: int
    stem: Path
    alignment: Alignment
    crop: np.ndarray
    shown: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """The faces of all photos, embedded a batch at a time; ``entries`` and ``failed`` are what the report says."""

    options: Options
    search: InversionOptions
    start: Latent | None
    models: Models
    base: dict[str, str]
    console: Console
    entries: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failed: list[dict[str, str]] = dataclasses.field(default_factory=list)

    @property
    def pivotal(self) -> PivotalOptions:
        """The settings of pivotal tuning."""
        names = [field.name for field in dataclasses.fields(PivotalOptions)]
        return PivotalOptions(**{name: getattr(self.options, name) for name in names})

    @property
    def batch_size(self) -> int:
        """Faces at a time."""
        if self.search.method == "pivotal":
            return 1  # a tuned generator belongs to one person
        if self.search.method in ENCODED:
            return self.options.encode_batch
        small = self.models.generator.resolution <= BATCH_UP_TO_PX
        return self.options.batch or (BATCH if small else 1)

    def batches(self) -> Iterator[list[_Face]]:
        """Read photo after photo and yield their faces, so many at a time; the last ones may be fewer."""
        waiting: list[_Face] = []
        for path, name in zip(self.options.photos, unique_names(self.options.photos), strict=True):
            try:
                waiting += self._find(path, name)
            except LimnerError as error:
                self._fail(path, error)
            while len(waiting) >= self.batch_size:
                yield waiting[: self.batch_size]
                waiting = waiting[self.batch_size :]
        if waiting:
            yield waiting

    def embed(self, faces: list[_Face]) -> None:
        """Embed a batch and write its files; where that fails, one by one, so that a face fails alone."""
        from limner import media

        try:
            found = self._invert(faces, media.to_image(*[face.crop for face in faces]))
        except LimnerError as error:
            if len(faces) == 1:
                self._fail(faces[0].photo, error)
            else:
                for face in faces:
                    self.embed([face])
            return
        for i, face in enumerate(faces):
            one = found.one(i)
            try:
                files = _write_face(face, one, self)
            except LimnerError as error:
                self._fail(face.photo, error)
                continue
            figures = one.report[0].to_dict()
            self.entries.append({"photo": str(face.photo), "face": face.number, "files": files, **figures})

    def _fail(self, path: Path, error: LimnerError) -> None:
        """Note a photo that failed; the only one ends the command."""
        if len(self.options.photos) == 1:
            raise error
        self.console.error(f"{path}: {error}" if str(path) not in str(error) else str(error))
        self.failed.append({"photo": str(path), "error": type(error).__name__, "message": str(error)})

    def _find(self, path: Path, name: str) -> list[_Face]:
        """Read a photo and cut its faces out."""
        from limner import media
        from limner.faces import crop_face, find_alignments

        options = self.options
        photo = media.read(path, max_megapixels=options.max_megapixels or media.MAX_MEGAPIXELS)
        for note in photo.notes:
            self.console.warn(f"{path}: {note}")
        align = dataclasses.replace(options, size=self.models.generator.resolution)
        alignments = find_alignments(
            photo.pixels, align, options, detector=self.models.detector, where=str(path)
        )
        first = int(options.face) if options.face.isdecimal() else 1
        stems = [f"{name}_{number:02d}" for number in range(first, first + len(alignments))]
        endings = (".safetensors", ".png", *(("-compare.png",) if options.compare else ()))
        refuse_taken([options.out / (stem + ending) for stem in stems for ending in endings], options)
        return [
            _Face(
                path,
                number,
                options.out / stem,
                alignment,
                crop_face(photo.pixels, alignment),
                crop_face(photo.pixels, alignment.resized(options.size)) if options.compare else None,
            )
            for number, (stem, alignment) in enumerate(zip(stems, alignments, strict=True), first)
        ]

    def _invert(self, faces: list[_Face], image: Tensor) -> Inversion:
        """Embed a batch of faces, image (B, 3, R, R), behind a progress bar."""
        from limner.inversion import invert

        options, search, models = self.options, self.search, self.models
        pivotal = self.pivotal
        steps = search.steps + search.noise_steps + (pivotal.tune_steps if search.method == "pivotal" else 0)
        encoder = models.encoder_for(search.method)
        if search.method in ENCODED:
            steps = options.iterations or getattr(encoder, "iterations", 1)
        title = f"{faces[0].photo.name}, face {faces[0].number}"
        title += f" and {len(faces) - 1} more" * (len(faces) > 1)
        with self.console.progress(steps, title) as progress:
            return invert(
                models.generator,
                image.to(models.device),
                search,
                perceptual=models.make_distance(),
                identity=models.make_identity(),
                init=self.start,
                mask=None if options.mask is None else read_mask(options.mask, models.generator.resolution),
                pivotal=pivotal,
                encoder=encoder,
                encoding=EncodeOptions(iterations=options.iterations, encode_batch=options.encode_batch),
                on_step=lambda step, _, record, preview: progress.set(step, f"loss {record['loss']:.3f}"),
            )


def _write_face(face: _Face, found: Inversion, job: _Job) -> list[str]:
    """Write codes, picture and comparison of one face; return the files."""
    from limner import media
    from limner.latent import save_latent
    from limner.nn.tuned import pack_tuned

    options, search, stem = job.options, job.search, face.stem
    record = {
        "command": "invert",
        "photo": str(face.photo),
        "trunk": found.report[0].trunk,
        **to_mapping(search),
        "preset": options.preset,
    }
    if search.method == "pivotal":
        record |= to_mapping(job.pivotal)
    if search.method in ENCODED:
        record |= {"encoder": str(options.encoder), "iterations": found.report[0].steps}
    packed = None
    if found.delta is not None:
        packed = pack_tuned(found.delta, kilobytes=options.tuned_kilobytes)
    notes: dict[str, Any] = {"options": record, "report": found.report[0].to_dict(), "base": job.base}
    notes["alignment"] = face.alignment.to_mapping()
    if packed is not None:
        notes["delta_error"] = packed.error
    painted = media.to_pixels(found.image)[0]
    written = [
        save_latent(
            stem.with_name(f"{stem.name}.safetensors"),
            found.latent,
            noise=found.noise,
            delta=packed.tensors if packed else None,
            metadata=notes,
        ),
        media.write(
            stem.with_name(f"{stem.name}.png"), painted, options=record, source_type="trainedAlgorithmicMedia"
        ),
    ]
    if face.shown is not None:
        pair = [face.shown, media.resize_pixels(painted, options.size)]
        sheet = media.make_sheet([pair], column_labels=("photo", "embedded"), cell_px=options.size)
        kind = "compositeWithTrainedAlgorithmicMedia"
        written.append(
            media.write(stem.with_name(f"{stem.name}-compare.png"), sheet, options=record, source_type=kind)
        )
    return [str(file) for file in written]


def _write_report(path: Path, values: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps(values, indent=1), encoding="utf-8")
    except OSError as error:
        raise MediaError(f"{path} cannot be written: {error.strerror or error}") from None


def _print_table(entries: list[dict[str, Any]], console: Console) -> None:
    rows = [
        (
            Path(entry["photo"]).name,
            entry["face"],
            entry["method"],
            f"{entry['psnr']:.2f}",
            "-" if entry["ssim"] is None else f"{entry['ssim']:.3f}",
            "-" if entry["perceptual"] is None else f"{entry['perceptual']:.4f}",
            f"{entry['identity']:.3f}",
            entry["steps"],
            format_seconds(entry["seconds"]),
        )
        for entry in entries
    ]
    first = entries[0]
    trunk = first["trunk"] or "no trunk"
    trunk += f" for {first['trunk_stands_for']}" if first["trunk_stands_for"] else ""
    about = identity_measure(first)
    columns = ("photo", "face", "method", "PSNR dB", "SSIM", f"perceptual ({trunk})")
    console.table((*columns, f"identity ({about['embedder']})", "steps", "time"), rows)
    same = f"; below {about['same_person_below']} is the same person" if "same_person_below" in about else ""
    instead = f"; {about['embedder']} stands in for {about['stands_for']}" if "stands_for" in about else ""
    console.print(f"identity: squared distance of the embeddings{same}{instead}")
