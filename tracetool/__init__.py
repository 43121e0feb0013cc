"""What did my change do to the work on the GPU?"""
