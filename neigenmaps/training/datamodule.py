"""Images to views: which rows make a batch, and what their views are, as a function of (seed, epoch, batch) alone.

Nothing random is kept between steps. The order of rows follows from (seed, epoch), the draw of views from (seed, epoch, batch,
process), so that a run resumed at any step continues bit for bit, with no generator to save.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from neigenmaps.data import BatchAugmentation, DatasetSplits, ImageStore, SmallViews, ViewLaw, load_splits
from neigenmaps.errors import InputError
from neigenmaps.training.gather import process, said_once

Part = Literal["train", "probe"]
RESIDENT_SHARE = 0.3  # of a GPU's memory: the rest belongs to activations
CHUNK = 512  # rows of one pass without gradients


def mix(*numbers: int) -> int:
    """One seed out of several numbers, such that neighbours give unrelated draws."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "big")


class RowLoader:
    """Batches of row numbers; resumes inside an epoch.

    Shuffled (training): global batches by (seed, epoch), of which each process yields its share; incomplete ones are dropped.
    Else: all rows in order, on every process alike, with the same seeds every time. epoch: asked at the start of each pass.
    """

    def __init__(
        self,
        part: Part,
        rows: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        epoch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.part, self.rows, self.batch_size, self.seed = part, rows, batch_size, seed
        self.shuffle, self.epoch, self.rank, self.world = shuffle, epoch, rank, world
        self.next_batch = 0

    def __len__(self) -> int:
        return self.rows // self.batch_size if self.shuffle else -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.epoch()
        order = self.order(epoch)
        start, self.next_batch = self.next_batch, 0
        for number in range(start, len(self)):
            self.next_batch = (number + 1) % len(self)
            yield self.batch(order, epoch, number)

    def order(self, epoch: int) -> Tensor:
        """The rows of an epoch."""
        if not self.shuffle:
            return torch.arange(self.rows)
        return torch.randperm(self.rows, generator=torch.Generator().manual_seed(mix(self.seed, epoch)))

    def batch(self, order: Tensor, epoch: int, number: int) -> dict[str, Any]:
        """What this process sees of one batch."""
        rows = order[number * self.batch_size : (number + 1) * self.batch_size]
        if self.shuffle:
            rows = rows[self.rank :: self.world]
        return {"part": self.part, "index": rows, "seed": mix(self.seed, epoch, number, self.rank)}

    def state_dict(self) -> dict[str, Any]:
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_batch = state["next_batch"]


class RowsDataModule(pl.LightningDataModule):
    """Batches of row numbers that resume inside an epoch. batch_size: of all processes together. seed: of their order."""

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self._loader: RowLoader | None = None
        self._resume_at: dict[str, Any] | None = None

    def training_rows(self, rows: int) -> RowLoader:
        """Shuffled batches of so many rows, from where a resumed run stood. InputError unless processes share them evenly."""
        self._loader = self._shuffled(rows)
        if self._resume_at is not None:
            self._loader.load_state_dict(self._resume_at)
            self._resume_at = None
        return self._loader

    def _shuffled(self, rows: int) -> RowLoader:
        rank, world = process()
        if self.batch_size % world:
            raise InputError(
                f"batch_size {self.batch_size} is of all processes together: expected a multiple of {world}"
            )
        return RowLoader(
            "train",
            rows,
            self.batch_size,
            seed=self.seed,
            shuffle=True,
            epoch=lambda: 0 if self.trainer is None else self.trainer.current_epoch,
            rank=rank,
            world=world,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands. Lightning keeps the loader's state too, but does not give it back when the module has asked for
        the number of steps (`estimated_stepping_batches`), because the loader is then made before the checkpoint is read."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Before the loader is made, or after: FSDP reads a checkpoint when the optimiser is there to take its part."""
        self._resume_at = state_dict
        if self._loader is not None:
            self._loader.load_state_dict(state_dict)

    def teardown(self, stage: str) -> None:
        self._resume_at = None  # of this fit, not of the next


class ViewsDataModule(RowsDataModule):
    """Images by name or path, and random views of them made on the device.

    dataset, root, download, image_size, cache_dir, test_share, max_unreadable_share: as in `neigenmaps.data.load_splits`.
    laws: one `ViewLaw`, or several of which each view of each image draws one; without any, views are the images themselves,
    and training is refused. batch_size: of all processes together.
    seed: of the order of rows and of the views. resident: keep the images in the device's memory (None: when they take less
    than 30 % of it; else a batch comes through pinned memory while the device computes). probe_size: images of each split that
    callbacks look at during training. n_views: of each image in a training step. small_views: more of them, of fewer pixels; what
    is measured, and the order at the end, are of pairs of the others.
    """

    def __init__(
        self,
        dataset: str = "digits",
        laws: list[ViewLaw] | None = None,
        batch_size: int = 256,
        root: str = "data",
        download: bool = False,
        image_size: int | None = None,
        cache_dir: str | None = None,
        seed: int = 0,
        resident: bool | None = None,
        probe_size: int = 2048,
        test_share: float = 0.2,
        max_unreadable_share: float = 0.01,
        n_views: int = 2,
        small_views: SmallViews | None = None,
    ) -> None:
        if batch_size < 2 or probe_size < 2 or n_views < 2:
            raise InputError(
                f"expected batch_size, probe_size and n_views of at least 2, got {batch_size}, {probe_size} and {n_views}"
            )
        super().__init__(batch_size, seed)
        self.dataset, self.root, self.download = dataset, root, download
        self.image_size, self.cache_dir = image_size, cache_dir
        self.test_share, self.max_unreadable_share = test_share, max_unreadable_share
        self.resident, self.probe_size = resident, probe_size
        self.n_views, self.small_views = n_views, small_views
        self.augmentation = BatchAugmentation([ViewLaw()] if laws is None else laws)
        self._training = [BatchAugmentation(self.augmentation.laws, n_views)]
        if small_views is not None:
            self._training.append(BatchAugmentation(small_views.laws, small_views.count, small_views.size))
        self._placed: dict[Part, Tensor] = {}

    def prepare_data(self) -> None:
        self.setup()  # downloads and packs on one process, before the others look

    def setup(self, stage: str | None = None) -> None:
        """Load the images, once: `splits`, and `probe`, what callbacks see: `probe_bank` training rows, then held-out ones."""
        if hasattr(self, "splits"):
            return
        with said_once(UserWarning):
            train, test = splits = self._load()
        if len(train) < self.batch_size:
            raise InputError(
                f"batch_size {self.batch_size} exceeds the {len(train)} training images: lower data.batch_size"
            )
        side = min(train.images_NCHW.shape[-2:])
        if self.small_views is not None and self.small_views.size > side:
            raise InputError(
                f"data.small_views: expected a size of at most {side} pixels, the images' side, got {self.small_views.size}"
            )
        bank, queries = (store.thin(self.probe_size) for store in (train, test))
        self.probe_bank = len(bank)
        labels = None
        if bank.labels_N is not None and queries.labels_N is not None:
            labels = torch.cat([bank.labels_N, queries.labels_N])
        self.probe = ImageStore.from_tensors(
            torch.cat([bank.images_NCHW, queries.images_NCHW]),
            labels,
            class_names=train.class_names,
            source=f"probe of {train.source}",
        )
        self.splits = splits

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Names of the image files that could not be read when a folder was packed."""
        return self.splits.train.skipped + self.splits.test.skipped

    def state_dict(self) -> dict[str, Any]:
        """With the images' fingerprints: a path stays the same where a folder changes."""
        return super().state_dict() | {"images": [part.fingerprint for part in self.splits]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns where the images are not those of the checkpoint: what is held out now may have been trained on."""
        super().load_state_dict(state_dict)
        ours = [part.fingerprint for part in self.splits]
        if state_dict.get("images", ours) != ours:
            rank_zero_warn(
                f"{self.dataset}: these are not the images that the checkpoint was trained on, or not in its split. What is "
                "held out now may have been trained on, so that scores may be too high; start anew for clean ones"
            )

    def train_dataloader(self) -> RowLoader:
        return self.training_rows(len(self.splits.train))

    def val_dataloader(self) -> RowLoader:
        return RowLoader("probe", len(self.probe), CHUNK, seed=self.seed, shuffle=False)

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Row numbers go to where the images lie, so that nothing has to wait for the device to read them."""
        return batch | {"index": batch["index"].to(self._place(batch["part"], device).device), "device": device}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Tensor]:
        """`images`, `views` (V, B, C, H, W) and, in training where there are any, `small_views`."""
        images = self._images(batch["part"], batch["index"], batch.get("device", batch["index"].device))
        makers = self._training if batch["part"] == "train" else [self.augmentation]
        generator = self._generator(batch["seed"], images.device)
        views = [augmentation(images, generator) for augmentation in makers]
        return {"images": images} | dict(zip(("views", "small_views"), views, strict=False))

    def training_batch(self, epoch: int, number: int, device: torch.device) -> dict[str, Tensor]:
        """Images and views of one training batch, whenever it was or will be seen."""
        loader = self._shuffled(len(self.splits.train))
        batch = loader.batch(loader.order(epoch), epoch, number)
        return self.on_after_batch_transfer(self.transfer_batch_to_device(batch, device, 0), 0)

    def training_views(self, n_passes: int, device: torch.device) -> Iterator[Tensor]:
        """Pairs of views (2, B, C, H, W) of all training images, `n_passes` times; each process yields its share of chunks."""
        rank, world = process()
        chunks = torch.arange(len(self.splits.train)).split(CHUNK)
        for number in range(rank, n_passes * len(chunks), world):
            images = self._images("train", chunks[number % len(chunks)], device)
            yield self.augmentation(images, self._generator(mix(self.seed, -1, number), device))

    def _load(self) -> DatasetSplits:
        return load_splits(
            self.dataset,
            root=self.root,
            download=self.download,
            image_size=self.image_size,
            cache_dir=self.cache_dir,
            test_share=self.test_share,
            max_unreadable_share=self.max_unreadable_share,
        )

    def _images(self, part: Part, index: Tensor, device: torch.device) -> Tensor:
        images = self._place(part, device)
        rows = images[index.to(images.device)]
        if rows.device == device:
            return rows
        # from pageable memory the copy would wait for all that the device has been given to do
        return (rows.pin_memory() if device.type == "cuda" else rows).to(device, non_blocking=True)

    def _place(self, part: Part, device: torch.device) -> Tensor:
        """All images of a part, in the device's memory or as they were opened."""
        if part not in self._placed:
            images = (self.splits.train if part == "train" else self.probe).images_NCHW
            fits = device.type == "cuda" and images.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[1]
            self._placed[part] = images.to(device) if (fits if self.resident is None else self.resident) else images
        return self._placed[part]

    @staticmethod
    def _generator(seed: int, device: torch.device) -> torch.Generator:
        return torch.Generator(device=device).manual_seed(seed)
