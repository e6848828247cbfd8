"""The rules of RetrieverContract: each public function is one, and raises if a retriever breaks it."""
