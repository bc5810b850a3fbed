"""The papers' experiments again: ``make reproduce`` runs every file of ``experiments`` and writes one page.

An experiment measures, and returns claims: what a paper says, what was found here, and a verdict. The page is made of
these alone, so what it says is what was measured.
"""
