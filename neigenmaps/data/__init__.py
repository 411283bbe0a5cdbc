"""Images: a packed uint8 store, data sets by name or folder, augmentation of whole batches on the device."""
