"""DICOM SEG: heart and coronary calcium on the CT's own frames, written and read back."""
