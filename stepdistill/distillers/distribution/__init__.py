"""Methods that match the student's distribution to the teacher's."""
