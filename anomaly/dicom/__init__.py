"""Meaning of DICOM tags, shared by reading and writing: tags, geometry, grey values.

Every rule of the standard that both need is implemented here once, so that written objects agree
with what was read.
"""
