"""Write a model, or codes, in the forms that other software reads.

    neigenmaps export checkpoints/digits/RUN --out exported --dims 64      # model/, timm/, model.onnx
    neigenmaps export photos.safetensors --out exported --dims 64          # codes.faiss with ids.json, codes.npz

Nothing in them is pickled.
"""

import argparse
from pathlib import Path

from neigenmaps.commands.checkpoint import CHECKPOINT_HELP, load_model
from neigenmaps.console import make_console
from neigenmaps.errors import InputError
from neigenmaps.nn.export import can_export_onnx, export_onnx, export_timm
from neigenmaps.retrieval import CodeStore
from neigenmaps.retrieval.export import export_faiss, export_numpy

OF_MODELS, OF_CODES = ("model", "timm", "onnx"), ("faiss", "numpy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help=f"{CHECKPOINT_HELP}; or a file of codes")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    parser.add_argument(
        "--formats", nargs="+", choices=[*OF_MODELS, *OF_CODES], default=None, help="default: all that fit"
    )
    parser.add_argument("--dims", type=int, default=None, help="length of the codes (default: all numbers)")
    parser.add_argument(
        "--scaling", choices=["sqrt_eigenvalue", "unit"], default="sqrt_eigenvalue", help="of the ONNX file"
    )


def run(arguments: argparse.Namespace) -> None:
    console, is_codes = make_console(), arguments.source.suffix == ".safetensors"
    fitting = OF_CODES if is_codes else OF_MODELS
    formats = arguments.formats or [name for name in fitting if name != "onnx" or can_export_onnx()]
    if wrong := [name for name in formats if name not in fitting]:
        kind = "codes" if is_codes else "a model"
        raise InputError(
            f"{arguments.source} holds {kind}, which go to {', '.join(fitting)}, not to {', '.join(wrong)}"
        )
    written = (_export_codes if is_codes else _export_model)(arguments, formats)
    for path in written:
        console.print(str(path), markup=False, soft_wrap=True)
    if not is_codes and arguments.formats is None and "onnx" not in formats:
        console.print("No ONNX file: it needs pip install 'neigenmaps\\[export]'.")


def _export_model(arguments: argparse.Namespace, formats: list[str]) -> list[Path]:
    model, out, written = load_model(arguments.source, "cpu"), arguments.out, []
    if "onnx" in formats:  # first, as it alone can be refused
        export_onnx(model, out / "model.onnx", dims=arguments.dims, scaling=arguments.scaling)
        written.append(out / "model.onnx")
    if "model" in formats:
        model.save_pretrained(out / "model")
        written.append(out / "model")
    if "timm" in formats:
        export_timm(model, out / "timm")
        written.append(out / "timm")
    return written


def _export_codes(arguments: argparse.Namespace, formats: list[str]) -> list[Path]:
    store, out, written = CodeStore.load(arguments.source), arguments.out, []
    if "faiss" in formats:
        export_faiss(store, out, truncate_dim=arguments.dims)
        written += [out / "codes.faiss", out / "ids.json"]
    if "numpy" in formats:
        export_numpy(store, out / "codes.npz", truncate_dim=arguments.dims)
        written.append(out / "codes.npz")
    return written
