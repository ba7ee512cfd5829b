//! The scopes of tokens.

/// Maximum length of a scope in bytes, including what a challenge adds.
pub(super) const MAX_SCOPE: usize = 2048;

/// The scope of a token: the registry's scope strings, separated by spaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Scope(pub(crate) String);

impl Scope {
    pub(crate) fn pull(repository: &str) -> Scope {
        Scope(format!("repository:{repository}:pull"))
    }

    /// Pull, push and delete. A separate scope, because fewer accounts may delete.
    pub(crate) fn delete(repository: &str) -> Scope {
        Scope(format!("repository:{repository}:pull,push,delete"))
    }

    /// Push to one repository, and pull from another to mount a blob from it.
    pub(crate) fn push(repository: &str, mount_from: Option<&str>) -> Scope {
        let push = format!("repository:{repository}:pull,push");
        match mount_from.filter(|from| *from != repository) {
            Some(from) => Scope(format!("{push} repository:{from}:pull")),
            None => Scope(push),
        }
    }

    /// This scope and those of a challenge: some registries grant access only with their own.
    pub(super) fn with(&self, stated: &str) -> Scope {
        let mut all = self.0.clone();
        for scope in stated.split_whitespace() {
            let is_new = !all.split(' ').any(|ours| covers(ours, scope));
            if is_new && all.len() + scope.len() < MAX_SCOPE {
                all.push(' ');
                all.push_str(scope);
            }
        }
        Scope(all)
    }
}

/// Whether a scope contains the resource and all actions of another.
fn covers(ours: &str, theirs: &str) -> bool {
    let (Some((resource, actions)), Some((other, others))) =
        (ours.rsplit_once(':'), theirs.rsplit_once(':'))
    else {
        return ours == theirs;
    };
    let mut others = others.split(',');
    resource == other && others.all(|action| actions.split(',').any(|ours| ours == action))
}
