"""Torch modules: objectives with hyper-parameters, encoders, projector, the model that encodes."""
