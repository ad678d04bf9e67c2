"""Many simulated courses, without files."""

import pytest

from simulation.synthesize.course import Patient, simulate_patient
from simulation.synthesize.settings import HospitalSettings, WorldSettings, hospital_settings
from simulation.synthesize.streams import Stream, random_stream


@pytest.fixture(scope="session")
def world() -> WorldSettings:
    return WorldSettings()


@pytest.fixture(scope="session")
def courses(world: WorldSettings) -> list[tuple[HospitalSettings, Patient]]:
    """2,400 patients of the three preset hospitals."""
    return [
        (hospital, simulate_patient(random_stream(11, index, patient, Stream.COURSE), world, hospital))
        for index, hospital in enumerate(hospital_settings(11, index) for index in range(3))
        for patient in range(800)
    ]
