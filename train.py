"""Train from a YAML file: `python train.py fit --config configs/cifar10.yaml`. With no argument: digits, end to end."""

from neigenmaps.cli import train

if __name__ == "__main__":
    train()
