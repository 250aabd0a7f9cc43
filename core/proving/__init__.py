"""Proofs about networks of affine layers and ReLUs: what holds for every input of a box.

Reading order: `network.py` and `question.py` say what is asked; `bounds.py` and `relaxation.py` answer
cheaply; `search.py` (phases of ReLUs, unsat cores) and `splitting.py` (boxes of inputs) answer for good;
`prove.py` picks among them, and reuses the proof about one network for another.
"""
