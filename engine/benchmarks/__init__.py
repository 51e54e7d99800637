"""Measurements: the data path beside other tools, on loopback and over wide-area links made on this machine.

``python -m benchmarks --help`` says how; ``make bench`` and ``make figures`` call it. Not part of the wheel.
"""
