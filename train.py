"""Train from a YAML file: `python train.py fit --config configs/cifar10.yaml`. With no argument: digits, end to end."""

from pathlib import Path

from neigenmaps.cli import train

if __name__ == "__main__":
    train(default_config=Path(__file__).parent / "configs" / "digits.yaml")
