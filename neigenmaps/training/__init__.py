"""Lightning: module, data module, callbacks, command line."""
