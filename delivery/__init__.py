"""DICOM to other systems: STOW-RS and C-STORE, and the journal of what was sent."""
