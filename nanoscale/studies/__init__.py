"""A QUESTION AND ITS ANSWER: study files, recipes, stages."""
