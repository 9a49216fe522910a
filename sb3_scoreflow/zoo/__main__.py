"""``python -m sb3_scoreflow.zoo VERB ...``"""

from sb3_scoreflow.zoo.verbs import main

if __name__ == "__main__":  # the processes of a SubprocVecEnv import this file, too
    main()
