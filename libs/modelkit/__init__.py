"""From a table or pictures to a model that answers: specs, preprocessing, architectures, the model package and its runtime.

Knows no web, database or event library. Everything but `architectures` and `export` loads without torch.
"""
