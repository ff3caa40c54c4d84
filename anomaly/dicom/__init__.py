"""The vocabulary of DICOM that reading and writing share: tags, geometry, grey values.

Every rule of the standard that both need is written here once, so that what is written shows what
was read.
"""
