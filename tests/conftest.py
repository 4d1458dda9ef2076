"""What all tests share: property tests are judged by their answers, not by how busy the machine is."""

from hypothesis import settings

settings.register_profile("project", deadline=None)
settings.load_profile("project")
